# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Many models under many policies: independent runs, spread over processes, machines or shards.

::

    plan -> digest of each unit's inputs -> executor -> one folder a unit -> summary

A unit is one ``lmr-guard run`` in a process of its own, so that one that dies takes no other along.
What it came to is kept beside the digest of all that decided it, and taken over by a later start
where that digest is the same. Nothing here decides anything about a model.
"""
