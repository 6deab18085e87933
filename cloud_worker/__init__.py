"""What runs in the cloud (see cloud_worker/README.md)."""
