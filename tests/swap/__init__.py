"""The swap on a lab's machines. Imported by name, as tests/faults is."""
