"""`driftline demo`: replay a dataset's test period through the whole pipeline and compare refresh policies.

``run`` is the course of it, ``reader`` reads what was served back from Kafka, ``applied`` what the devices hold in the
end, ``screen`` shows how it stands.
"""
