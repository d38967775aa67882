"""The service: models that answer over HTTP, run folders that can be watched, and the pages of `viscoin.dashboard`.

It calls the functions that the command line calls and computes nothing itself. Needs the extra `app`.
"""
