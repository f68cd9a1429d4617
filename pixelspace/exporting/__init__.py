"""Models for those who have other programs: a diffusers pipeline, ONNX, torch.export, and files of half the size."""
