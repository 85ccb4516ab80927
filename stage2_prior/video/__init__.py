"""The prior over the next frame of a video, and how it continues one."""
