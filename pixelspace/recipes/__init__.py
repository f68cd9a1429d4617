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
}
