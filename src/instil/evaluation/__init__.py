"""What a student is worth: answers, fidelity to the teacher, drift from the base."""
