"""The diffusion model: training images, denoiser, training and sampling."""
