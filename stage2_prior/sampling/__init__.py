"""Samplers: functions that draw codes from any prior."""
