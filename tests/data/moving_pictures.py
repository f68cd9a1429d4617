"""Small clips made by hand: a picture that moves the same way every time."""

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

CODINGS = {
    "h264.mp4": ("libx264", {"g": "10", "bf": "2"}),
    "open_gop.mkv": ("libx264", {"g": "10", "bf": "3", "x264-params": "open-gop=1"}),
    "hevc.mov": ("libx265", {"x265-params": "log-level=none:keyint=10:pools=1"}),
    "vp8_hidden_frames.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "16"}),
    "vp9.webm": ("libvpx-vp9", {"g": "16", "cpu-used": "8"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "all_keys.mov": ("mjpeg", {}),
}


def motion(frames: int, width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 (frames, height, width, 3): a smooth ground that brightens, and a bar that goes to the right. Frame i is at
    a level of red that says so."""
    y, x = np.mgrid[:height, :width]
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for i in range(frames):
        clip[i, ..., 0] = i * 240 // frames
        clip[i, ..., 1] = np.where(abs(x - (3 * i + 7 * seed) % width) < 4, 255, 40)
        clip[i, ..., 2] = (y * 4 + i) % 256
    return clip


def film(path: Path, clip: np.ndarray, coding: str = "h264.mp4", rate: int = 24, rotation: int = 0, **colour) -> Path:
    codec, options = CODINGS[coding]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={**options, "threads": "1"})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for name, value in colour.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for pixels in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def animated(pictures: list[Image.Image], kind: str, milliseconds: int = 40, **settings) -> bytes:
    file = io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], duration=milliseconds, **more, **settings)
    return file.getvalue()


def animation(path: Path, clip: np.ndarray, milliseconds: int = 40) -> Path:
    kind = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}[path.suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(animated([Image.fromarray(frame) for frame in clip], kind, milliseconds))
    return path
