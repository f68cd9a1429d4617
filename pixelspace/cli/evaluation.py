"""Commands about evaluation: evaluate, reference, protocols, preference, votes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction

from pixelspace.cli.given import cache_folder, weights_folder
from pixelspace.errors import UserError

Repeated = Annotated[tuple[str, ...], UseAppendAction]


def _computing(device: str, weights: Path | None, download: bool, quiet: bool, **more: Any) -> Any:
    from pixelspace import dist
    from pixelspace.evaluation.computing import Computing
    from pixelspace.evaluation.weights import Weights

    rank, world = dist.rank(), dist.world()
    looked_in = Weights(weights_folder() if weights is None else weights, download)
    return Computing(looked_in, dist.pick_device(device), rank, world, progress=not quiet and rank == 0, **more)


def _others(computing: Any, out: Path) -> None:
    print(f"rank {computing.rank} of {computing.world}: its share is done; {out} is complete when the others are")


def _show(report: Any, out: Path) -> None:
    print(report.summary(), end="")
    print(f"\nwhat made them:\n{out / 'report.md'}\n{out / 'report.json'}")


def _require_unasked(protocol: str, given: Mapping[str, Any]) -> None:
    """Raises UserError if an option is given that a protocol has no use for."""
    if idle := [f"--{name}" for name, value in given.items() if value is not None and value != ()]:
        raise UserError(f"{protocol} has no use for {', '.join(idle)}; leave it out")


def evaluate(
    target: Positional[Path],
    *,
    protocol: str = "quick",
    reference: Path | None = None,
    out: Path | None = None,
    count: int | None = None,
    metric: Repeated = (),
    prompts: Path | None = None,
    answers: Path | None = None,
    vqa: str | None = None,
    human: Path | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    sweep: Repeated = (),
    seed: int | None = None,
    repeats: int | None = None,
    batch: int | None = None,
    vae: Path | None = None,
    weights: Path | None = None,
    download: bool = False,
    keep: bool = False,
    trust_reference: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Judge a model or images by a named protocol, and write report.json and report.md; the same command goes on where
    it stopped, and `torchrun` shares the work out.

    Args:
        target: A run, model or hf://user/name, or images: a folder, .zip, .tar, .npz or .npy.
        protocol: Its name; `pixelspace protocols` lists them.
        reference: Statistics, or images, to compare with; of a run by default the images it was trained on.
        out: The folder to write to; of a run TARGET/evaluations/PROTOCOL, else evaluations/NAME-PROTOCOL by default.
        count: How many images, where that is not the protocol's number; the numbers are labelled with it.
        metric: One of the protocol's numbers; may be given several times. All by default.
        prompts: Captions of the images, one each in their order (.txt, .json, .jsonl, .csv); for counting the
            benchmark's prompts.csv.
        answers: Where answers to questions about the images are kept.
        vqa: The network that answers questions, by its folder below that of weights: Salesforce/blip-vqa-base.
        human: For counting: people's answers, against which the network's are held.
        steps: Solver steps; as the model says by default.
        sampler: The solver; as the model says by default.
        guidance: Scale of classifier-free guidance; as the model says by default.
        sweep: A setting and its values: guidance=1,1.5,2 or steps=10,25,50; several are combined.
        seed: The first seed; as the protocol says by default.
        repeats: How many seeds; as the protocol says by default.
        batch: Images drawn at once; 16 by default.
        vae: Where the VAE of a model of latents is, if not where the recipe says.
        weights: The folder that weights of judging networks are looked for in.
        download: Fetch what is missing there.
        keep: Write the judged images too.
        trust_reference: Compare with a reference that does not say, or says otherwise, how it was made.
        device: cpu, cuda, mps or auto.
        quiet: No progress bar.
    """
    from pixelspace import judge
    from pixelspace.evaluation import sweep as sweeps
    from pixelspace.evaluation.asking import ask
    from pixelspace.evaluation.protocols import QUESTIONS, Questions, of_name

    chosen = of_name(protocol)
    if out is None:
        out = judge.default_out(target, protocol)
    computing = _computing(device, weights, download, quiet, keep=keep, trust=trust_reference)
    settings = {"steps": steps, "sampler": sampler, "guidance": guidance}
    if isinstance(chosen, Questions):
        drawing = {**settings, "seed": seed, "batch": batch, "vae": vae}
        idle = {"reference": reference, "count": count, "metric": metric, "sweep": sweep, "repeats": repeats}
        idle |= {"keep": keep or None, "trust-reference": trust_reference or None}
        _require_unasked(protocol, idle if judge.is_model(target) else {**idle, **drawing})
        if judge.is_model(target):
            given = {name: value for name, value in settings.items() if value is not None}
            target = judge.draw_questioned(
                target, chosen, out, computing, prompts=prompts, settings=given, seed=seed, batch=batch, vae=vae
            )
            if computing.world > 1:
                print(
                    f"rank {computing.rank} of {computing.world}: its share of the images is drawn; "
                    f"when the others' are, the same command as one process asks the questions"
                )
                return
        else:
            judge.require_place(out, target)
        report = ask(target, chosen, out, computing, answers=answers, vqa=vqa, prompts=prompts, human=human)
        return _show(report, out)
    if answers is not None or vqa is not None or human is not None:
        raise UserError(f"{protocol} asks no questions; --answers, --vqa and --human go with {', '.join(QUESTIONS)}")
    task = judge.Task(
        target,
        chosen,
        reference=reference,
        count=count,
        metrics=metric,
        prompts=prompts,
        vae=vae,
        settings=tuple((name, given) for name, given in settings.items() if given is not None),
        seed=seed,
        repeats=repeats,
        batch=batch,
    )
    if not sweep:
        report = judge.judge(task, out, computing, cache=cache_folder())
        if report is None:
            return _others(computing, out)
        return _show(report, out)
    found = judge.sweep(task, sweeps.points_of(sweep), out, computing, cache=cache_folder())
    if found is None:
        return _others(computing, out)
    written = sweeps.save(found, out)
    print(written[0].read_text(encoding="utf-8"), end="")
    print("\n" + "\n".join(map(str, written)))


def reference(
    images: Positional[Path],
    out: Positional[Path],
    *,
    protocol: str = "quick",
    size: tuple[int, ...] = (),
    metric: Repeated = (),
    features: bool = False,
    weights: Path | None = None,
    download: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Compute the statistics of a folder, archive or array of images, for `evaluate --reference`; the same command goes
    on where it stopped, and `torchrun` shares the work out.

    Args:
        images: The images.
        out: The .safetensors to write.
        protocol: The protocol whose networks look at them, and whose crop cuts them.
        size: Side, or height and width, to cut images to; as they are by default, or as the protocol says.
        metric: Only for these of the protocol's numbers; may be given several times.
        features: Keep the features of every image, as kernel distances, precision and recall need them.
        weights: The folder that weights of judging networks are looked for in.
        download: Fetch what is missing there.
        device: cpu, cuda, mps or auto.
        quiet: No progress bar.
    """
    from pixelspace import judge
    from pixelspace.evaluation.protocols import Questions, of_name

    if len(size) > 2:
        raise UserError(f"--size: give a side, or height and width; found {len(size)} numbers")
    chosen = of_name(protocol)
    if isinstance(chosen, Questions):
        raise UserError(f"{protocol} compares with no reference")
    computing = _computing(device, weights, download, quiet)
    made = judge.make_reference(
        images,
        out,
        chosen,
        computing,
        metrics=metric,
        size=None if not size else (size[0], size[-1]),
        features=features,
        cache=cache_folder(),
    )
    if made is None:
        return _others(computing, out)
    print(made)


def protocols() -> None:
    """List the protocols of `evaluate`, one line each."""
    from pixelspace.evaluation.protocols import PROTOCOLS, QUESTIONS

    known = {**PROTOCOLS, **QUESTIONS}
    width = max(map(len, known))
    for name, make in known.items():
        print(f"{name:{width}}  {make().about}")


def preference(
    left: Positional[Path],
    right: Positional[Path],
    *,
    out: Path = Path("preference"),
    prompts: Path | None = None,
    question: str = "Which image do you prefer?",
    seed: int = 0,
) -> None:
    """Write a page that asks people which of two images they prefer, with sides and order hidden; it works from a
    folder, without a server. Give judges the folder without key.json.

    Args:
        left: A folder or .zip of images.
        right: Another, with images of the same names.
        out: The folder to write.
        prompts: Captions: a .json object by name, or a .txt with one line a pair.
        question: What is asked.
        seed: Which side and which order.
    """
    from pixelspace.evaluation.preference import write_preference_page

    print(write_preference_page(left, right, out, prompts=prompts, seed=seed, question=question))


def votes(files: Positional[tuple[Path, ...]], *, key: Path, confidence: float = 0.95) -> None:
    """Count the votes that judges sent back from a preference page: wins, losses and ties with intervals.

    Args:
        files: The CSV files.
        key: The page's key.json.
        confidence: Of the intervals.
    """
    from pixelspace.evaluation.votes import read_votes, summarise

    if not 0 < confidence < 1:
        raise UserError(f"--confidence: expected a probability between 0 and 1, found {confidence}")
    print(summarise(read_votes(files, key)).markdown(confidence))
