"""What happens beside the loop: watching, saving, validating, stopping.

Each callback is one file and knows the trainer only through its public attributes.
"""
