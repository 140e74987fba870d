"""Hydra config groups; installed as `xray_pneumonia.conf`."""
