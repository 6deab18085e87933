"""Judging a bundle on the period that none of its models saw: what staleness costs and what each method makes good."""
