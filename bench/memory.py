# SPDX-License-Identifier: BSD-3-Clause
"""What a server costs while nothing happens: memory, memory of idle connections, wake-ups."""
import resource
import time

import servers

SETTLE_SECONDS = 0.5


def raise_file_limit():
    """A thousand connections need a descriptor each, here and in the server that inherits this."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def wakeups_per_second(running, seconds):
    """Voluntary context switches: one for every time that a thread went to sleep again."""
    before = servers.status_sum(running.pid, "voluntary_ctxt_switches", True)
    time.sleep(seconds)
    after = servers.status_sum(running.pid, "voluntary_ctxt_switches", True)
    return (after - before) / seconds


def measure(generator, running, connections, watch_seconds):
    """A dictionary of numbers; memory in KiB. The connections have negotiated and then keep still.

    The server has had one client before, so that what it allocates once is not blamed on the idle
    ones.
    """
    generator.run(running, ["--op", "read", "--ops", "1"])
    time.sleep(SETTLE_SECONDS)
    result = {"connections": connections,
              "idle_kib": servers.resident_kib(running.pid),
              "idle_wakeups": wakeups_per_second(running, watch_seconds)}
    hold = 2 * SETTLE_SECONDS + watch_seconds + 1
    clients = generator.start(running, ["--op", "idle", "--connections", str(connections),
                                        "--seconds", str(hold)])
    try:
        ready = clients.stdout.readline().strip()
        if ready != f"ready={connections}":
            raise servers.BenchError(f"{connections} idle connections to {running.server.name} "
                                     f"failed: {clients.communicate()[1].strip()}")
        time.sleep(SETTLE_SECONDS)
        connected = servers.resident_kib(running.pid)
        result["threads"] = servers.status_sum(running.pid, "Threads", False)
        result["connected_wakeups"] = wakeups_per_second(running, watch_seconds)
        _, err = clients.communicate(timeout=hold + 30)
        if clients.returncode:
            raise servers.BenchError(f"{running.server.name} dropped idle connections: "
                                     f"{err.strip()}")
    finally:
        if clients.poll() is None:
            clients.kill()
            clients.communicate()
    result["kib_per_connection"] = (connected - result["idle_kib"]) / connections
    time.sleep(SETTLE_SECONDS)
    result["afterwards_kib"] = servers.resident_kib(running.pid)
    return result
