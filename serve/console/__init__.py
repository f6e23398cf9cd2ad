"""The console: a page to chat and judge, and a page to operate. A client of the public HTTP API and nothing else."""
