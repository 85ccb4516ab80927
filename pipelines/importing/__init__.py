"""Checkpoints of other projects as models of this one."""
