"""The diffusion model: tiles as training images, the denoiser, its training, sampling from it."""
