"""A real, minimal OpenStack on this machine, for tests: Debian's packages in namespaces of their own.

``python -m tests.acceptance.ground -- COMMAND...`` runs the command beside it. Needs root, Debian and no network once
the cache is filled. See __main__.py for the phases, configuration.py for what the cloud is.
"""
