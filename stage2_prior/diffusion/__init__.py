"""Latent diffusion over diffusers: a UNet that denoises the vectors that codes stand for."""
