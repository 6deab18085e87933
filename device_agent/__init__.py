"""What runs on, or stands for, a device (see device_agent/README.md)."""
