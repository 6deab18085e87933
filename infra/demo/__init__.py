"""`driftline demo`: replay a dataset's test period through the whole pipeline and compare refresh policies.

``run`` is the course of it, ``reader`` reads what was served back from Kafka while it is made, ``whole_topic`` what
stands in a topic in the end, ``applied`` what the devices hold then, ``screen`` shows how it stands, ``record`` is
what a run leaves behind: `driftline evaluate demo` serves it again offline.
"""
