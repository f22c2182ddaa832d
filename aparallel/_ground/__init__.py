"""What every part stands on, or has no part of its own to be in. Uses nothing of the package but its errors.

What users hold and extend: ``call``, ``sharing``, ``store``, ``encoding``, ``outcomes``. Threads and loops: ``hop`` (to
a thread and back), ``stoppable`` (for long), ``threads`` (where both happen), ``handover`` (data between a thread and a
loop), ``helping`` and ``both_ends`` (a second thread at the same work), ``cores``, ``loops``, ``shield``,
``nesting``, ``forks``. The machine: ``cpus``, ``cgroups``, ``room`` (of memory), ``uncleared`` (memory as it is). Small
things: ``units``, ``timings``, ``exceptions``, ``bars``, ``awaiting``, ``notebooks``.
"""
