"""What happens to jobs from outside a run: detached runs, status, export and removal."""
