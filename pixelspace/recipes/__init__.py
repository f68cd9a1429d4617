"""The recipes by name, each with the function that makes it and one line about it. Importing this imports no torch."""

RECIPES = {
    "hdit-demo": ("pixelspace.recipes.hdit:demo", "167 emoji faces at 32 px: minutes on two CPU cores"),
    "hdit-emoji": ("pixelspace.recipes.hdit:emoji", "1,500 emoji in 8 groups at 64 px: an hour of CPU, minutes of GPU"),
    "hdit-64": ("pixelspace.recipes.hdit:own64", "your own folder of images at 64 px"),
    "hdit-256": ("pixelspace.recipes.hdit:own256", "your own folder of images at 256 px"),
    "hdit-text-demo": (
        "pixelspace.recipes.text:text_demo",
        "285 emoji at 32 px by their names: 20 minutes of two cores",
    ),
    "hdit-text-256": ("pixelspace.recipes.text:own_text256", "your own captioned images at 256 px"),
    "hdit-imagenet128": ("pixelspace.recipes.hdit:imagenet128", "HDiT 117M, ImageNet at 128 px by class"),
    "hdit-imagenet256": ("pixelspace.recipes.hdit:imagenet256", "HDiT 557M, ImageNet at 256 px by class, 4 stages"),
    "hdit-ffhq1024": ("pixelspace.recipes.hdit:ffhq1024", "HDiT 85M, faces at 1024 px"),
    "maskdit-emoji": ("pixelspace.recipes.maskdit:emoji", "masked pixels: 1,500 emoji in 8 groups at 32 px, 2 stages"),
    "maskdit-64": ("pixelspace.recipes.maskdit:own64", "your own folder of images at 64 px, masked pixels, 2 stages"),
    "maskdit-latents256": (
        "pixelspace.recipes.maskdit:own_latents256",
        "the latents of your own images at 256 px, masked, 2 stages",
    ),
    "maskdit-imagenet256": ("pixelspace.recipes.maskdit:imagenet256", "MaskDiT-XL/2, latents of ImageNet at 256 px"),
    "maskdit-imagenet256-cosine": (
        "pixelspace.recipes.maskdit:imagenet256_cosine",
        "maskdit-imagenet256, tuned while the mask falls to nothing",
    ),
    "maskdit-imagenet512": ("pixelspace.recipes.maskdit:imagenet512", "MaskDiT-XL/2, latents of ImageNet at 512 px"),
    "hdit-table8-p16-s": ("pixelspace.recipes.hdit:table8_p16_s", "HDiT 116M of the paper's Table 8: patch 16"),
    "hdit-table8-p16-m": ("pixelspace.recipes.hdit:table8_p16_m", "HDiT 267M of the paper's Table 8: patch 16"),
    "hdit-table8-p16-l": ("pixelspace.recipes.hdit:table8_p16_l", "HDiT 507M of the paper's Table 8: patch 16"),
    "hdit-table8-p8-s": ("pixelspace.recipes.hdit:table8_p8_s", "HDiT 134M of the paper's Table 8: patch 8"),
    "hdit-table8-p8-m": ("pixelspace.recipes.hdit:table8_p8_m", "HDiT 294M of the paper's Table 8: patch 8"),
    "hdit-table8-p8-l": ("pixelspace.recipes.hdit:table8_p8_l", "HDiT 547M of the paper's Table 8: patch 8"),
    "hdit-table8-p4-s": ("pixelspace.recipes.hdit:table8_p4_s", "HDiT 139M of the paper's Table 8: patch 4"),
    "hdit-table8-p4-m": ("pixelspace.recipes.hdit:table8_p4_m", "HDiT 302M of the paper's Table 8: patch 4"),
    "hdit-table8-p4-l": ("pixelspace.recipes.hdit:table8_p4_l", "HDiT 557M of the paper's Table 8: patch 4"),
    "greedy-cc12m-512": (
        "pixelspace.recipes.greedy:cc12m_512",
        "core at 64 px, grown to 512 px, the core frozen; 663M, a size of ours, not the paper's",
    ),
    "greedy-cc12m-512-unfrozen": (
        "pixelspace.recipes.greedy:cc12m_512_unfrozen",
        "greedy-cc12m-512, the core released after 500k of 2M steps",
    ),
    "greedy-cc12m-512-joint": ("pixelspace.recipes.greedy:cc12m_512_joint", "greedy-cc12m-512, the core never frozen"),
    "greedy-cc12m-512-scratch": ("pixelspace.recipes.greedy:cc12m_512_scratch", "its network from scratch at 512 px"),
    "greedy-cc12m-512-random": ("pixelspace.recipes.greedy:cc12m_512_random", "a control: a random core, frozen"),
    "greedy-cc12m-512-slow": ("pixelspace.recipes.greedy:cc12m_512_slow", "a control: a tenth of the rate in the core"),
    "greedy-cc12m-512-flops": (
        "pixelspace.recipes.greedy:cc12m_512_flops",
        "a control: from scratch for the arithmetic of greedy-cc12m-512",
    ),
    "vermeer-8b": (
        "pixelspace.recipes.greedy:vermeer_8b",
        "UViT of 8.5B parameters at 256 px, grown to 1024 px, tuned; widths and depth are ours",
    ),
    "greedy-emoji": ("pixelspace.recipes.grown:greedy_emoji", "285 emoji by their names at 32 px, grown to 64 px"),
    "greedy-256": ("pixelspace.recipes.grown:greedy_256", "your own captioned images: core at 64 px, grown to 256 px"),
    "mdm-clips": (
        "pixelspace.recipes.moving:clips",
        "your own captioned clips: frames at 16 px, 16 of them, 16 at 32 px",
    ),
    "hdit-grown-128": (
        "pixelspace.recipes.grown:hdit_128",
        "your own folder of images: 64 px, then a level for 128 px",
    ),
    "maskdit-grown-128": (
        "pixelspace.recipes.grown:maskdit_128",
        "your own folder of images: masked at 64 px, then at 128 px, 3 stages",
    ),
    "hdit-pyramid-256": (
        "pixelspace.recipes.pyramids:hdit_256",
        "your own folder of images: HDiT at 64 px, then inside a pyramid for 256 px, 3 stages",
    ),
    "uvit-pyramid-256": (
        "pixelspace.recipes.pyramids:uvit_256",
        "your own captioned images: UViT at 64 px, then inside a pyramid for 256 px, 3 stages",
    ),
    "pyramid-emoji": (
        "pixelspace.recipes.pyramids:emoji",
        "167 emoji faces: HDiT at 32 px, then inside a pyramid for 64 px, 3 stages",
    ),
    "mdm-cc12m": (
        "pixelspace.recipes.matryoshka:cc12m",
        "Matryoshka's networks on CC12M: 64 px, then 256 px round it, then 1024 px",
    ),
    "mdm-cc12m-frozen": (
        "pixelspace.recipes.matryoshka:cc12m_frozen",
        "mdm-cc12m, each network held still once a level is round it",
    ),
    "mdm-cc12m-paper": (
        "pixelspace.recipes.matryoshka:cc12m_paper",
        "mdm-cc12m, its text read by two layers that learn, as in the paper",
    ),
    "mdm-flickr": ("pixelspace.recipes.matryoshka:flickr", "the values of the released configurations, 64 to 1024 px"),
    "mdm-imagenet256": ("pixelspace.recipes.matryoshka:imagenet256", "ImageNet by class: 64 px, then 256 px round it"),
    "mdm-webvid": (
        "pixelspace.recipes.matryoshka:webvid",
        "WebVid by its captions: frames at 64 px, 16 of them, 16 at 256 px",
    ),
    "mdm-256": ("pixelspace.recipes.matryoshka:own256", "your own captioned images: 64 px, then 256 px round it"),
    "mdm-emoji": ("pixelspace.recipes.matryoshka:emoji", "285 emoji by their names at 16, 32 and 64 px"),
    "hdit-imagenet128-debug": ("pixelspace.recipes.hdit:imagenet128_debug", "hdit-imagenet128 at toy size: seconds"),
    "hdit-imagenet256-debug": ("pixelspace.recipes.hdit:imagenet256_debug", "hdit-imagenet256 at toy size: seconds"),
    "hdit-ffhq1024-debug": ("pixelspace.recipes.hdit:ffhq1024_debug", "hdit-ffhq1024 at toy size: seconds"),
    "hdit-text-debug": ("pixelspace.recipes.text:text_debug", "text as bytes, at toy size: seconds"),
    "maskdit-imagenet256-debug": (
        "pixelspace.recipes.maskdit:imagenet256_debug",
        "maskdit-imagenet256 at toy size in pixels: seconds",
    ),
    "maskdit-imagenet256-cosine-debug": (
        "pixelspace.recipes.maskdit:imagenet256_cosine_debug",
        "maskdit-imagenet256-cosine at toy size in pixels: seconds",
    ),
    "maskdit-imagenet512-debug": (
        "pixelspace.recipes.maskdit:imagenet512_debug",
        "maskdit-imagenet512 at toy size in pixels: seconds",
    ),
    "greedy-cc12m-512-debug": ("pixelspace.recipes.greedy:cc12m_512_debug", "greedy-cc12m-512 at toy size: seconds"),
    "greedy-cc12m-512-unfrozen-debug": (
        "pixelspace.recipes.greedy:cc12m_512_unfrozen_debug",
        "greedy-cc12m-512-unfrozen at toy size: seconds",
    ),
    "greedy-cc12m-512-joint-debug": (
        "pixelspace.recipes.greedy:cc12m_512_joint_debug",
        "greedy-cc12m-512-joint at toy size: seconds",
    ),
    "greedy-cc12m-512-scratch-debug": (
        "pixelspace.recipes.greedy:cc12m_512_scratch_debug",
        "greedy-cc12m-512-scratch at toy size: seconds",
    ),
    "greedy-cc12m-512-random-debug": (
        "pixelspace.recipes.greedy:cc12m_512_random_debug",
        "greedy-cc12m-512-random at toy size: seconds",
    ),
    "greedy-cc12m-512-slow-debug": (
        "pixelspace.recipes.greedy:cc12m_512_slow_debug",
        "greedy-cc12m-512-slow at toy size: seconds",
    ),
    "greedy-cc12m-512-flops-debug": (
        "pixelspace.recipes.greedy:cc12m_512_flops_debug",
        "greedy-cc12m-512-flops at toy size: seconds",
    ),
    "vermeer-8b-debug": ("pixelspace.recipes.greedy:vermeer_8b_debug", "vermeer-8b at toy size: seconds"),
    "greedy-256-debug": ("pixelspace.recipes.grown:greedy_256_debug", "greedy-256 at toy size: seconds"),
    "hdit-grown-128-debug": ("pixelspace.recipes.grown:hdit_128_debug", "hdit-grown-128 at toy size: seconds"),
    "maskdit-grown-128-debug": ("pixelspace.recipes.grown:maskdit_128_debug", "maskdit-grown-128 at toy size: seconds"),
    "hdit-pyramid-256-debug": ("pixelspace.recipes.pyramids:hdit_256_debug", "hdit-pyramid-256 at toy size: seconds"),
    "uvit-pyramid-256-debug": ("pixelspace.recipes.pyramids:uvit_256_debug", "uvit-pyramid-256 at toy size: seconds"),
    "pyramid-emoji-debug": ("pixelspace.recipes.pyramids:emoji_debug", "pyramid-emoji at toy size: seconds"),
    "mdm-cc12m-debug": ("pixelspace.recipes.matryoshka:cc12m_debug", "mdm-cc12m at toy size: seconds"),
    "mdm-cc12m-frozen-debug": (
        "pixelspace.recipes.matryoshka:cc12m_frozen_debug",
        "mdm-cc12m-frozen at toy size: seconds",
    ),
    "mdm-cc12m-paper-debug": (
        "pixelspace.recipes.matryoshka:cc12m_paper_debug",
        "mdm-cc12m-paper at toy size: seconds",
    ),
    "mdm-flickr-debug": ("pixelspace.recipes.matryoshka:flickr_debug", "mdm-flickr at toy size: seconds"),
    "mdm-imagenet256-debug": (
        "pixelspace.recipes.matryoshka:imagenet256_debug",
        "mdm-imagenet256 at toy size: seconds",
    ),
    "mdm-webvid-debug": ("pixelspace.recipes.matryoshka:webvid_debug", "mdm-webvid at toy size: seconds"),
    "mdm-256-debug": ("pixelspace.recipes.matryoshka:own256_debug", "mdm-256 at toy size: seconds"),
}
