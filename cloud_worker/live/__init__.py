"""What other people do, lately: the part of the cloud model that is never trained and never out of date."""
