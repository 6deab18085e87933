"""The local launcher: worker processes, supervised, with no orphan left behind.

::

    with like_ctrl_c(), Supervisor(specs, on_event=show) as supervisor:
        supervisor.wait_ready()
        supervisor.run_until(stop)      # raises ProcessFailed

Rooms: ``supervisor`` is the supervisor itself, ``restart_policy`` decides when to start again and when to give up,
``child`` is one process and its guard, ``readiness`` asks it over HTTP, ``events`` is what is told, ``interrupt``
makes SIGTERM and SIGHUP equal to Ctrl-C.
"""

from infra.launch.child import ProcessSpec, last_lines
from infra.launch.events import ProcessStatus, SupervisorEvent
from infra.launch.interrupt import like_ctrl_c
from infra.launch.restart_policy import RestartPolicy
from infra.launch.supervisor import STOP_S, Supervisor

__all__ = [
    "STOP_S",
    "ProcessSpec",
    "ProcessStatus",
    "RestartPolicy",
    "Supervisor",
    "SupervisorEvent",
    "last_lines",
    "like_ctrl_c",
]
