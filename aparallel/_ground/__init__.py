"""What every part stands on, or has no part of its own to be in. Uses nothing of the package but its errors.

What users hold and extend: ``call``, ``sharing``, ``store``. Threads and loops: ``hop``, ``stoppable``, ``threads``,
``handover``, ``loops``, ``shield``, ``nesting``. The machine: ``cpus``, ``room``. Small things: ``units``, ``timings``,
``exceptions``, ``bars``, ``awaiting``.
"""
