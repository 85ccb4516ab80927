"""The WaveNet: dilated causal convolutions over a sequence of codes, and its steps with queues."""
