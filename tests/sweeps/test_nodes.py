"""One sweep on four nodes: namespaces with hosts, pids, networks, homes, data and clocks of their own, and faults."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from urllib.request import urlopen

import psutil
import pytest

from xray_pneumonia.data import synthetic

GATEWAY, NETWORK = "10.213.77.1", "10.213.77.0/24"
GRACE = 20  # seconds, of trials
LED = 60  # seconds, of the parent run; ten minutes by default, which a test need not wait
TRIALS = 60
NODE = f"""
import sys
from xray_pneumonia.tracking import sync
sync.HEARTBEAT, sync.STALE_AFTER = 5.0, {LED}.0
from xray_pneumonia.cli import main
sys.exit(main())
"""
CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *t) {
    int failed = syscall(SYS_clock_gettime, clock, t);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) t->tv_sec += WRONG_BY;
    return failed;
}
int gettimeofday(struct timeval *v, void *zone) {
    struct timespec t;
    int failed = clock_gettime(CLOCK_REALTIME, &t);
    if (!failed) *v = (struct timeval){t.tv_sec, t.tv_nsec / 1000};
    return failed;
}
time_t time(time_t *p) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return p ? (*p = t.tv_sec) : t.tv_sec;
}
"""  # no time namespace has it; libfaketime breaks Python's sleep
ENTER = """
hostname "$1"
for file in /etc/machine-id /proc/sys/kernel/random/boot_id; do [ ! -e $file ] || mount --bind "$2" $file; done
shift 2
exec "$@"
"""


def run(*command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@contextmanager
def network(names):
    """A bridge with the servers' address, and a network namespace for each node."""
    bridge = f"xb{os.getpid()}"
    with ExitStack() as stack:
        try:
            run("ip", "link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError:
            pytest.skip("needs a kernel that lets root make networks")
        stack.callback(run, "ip", "link", "del", bridge)
        run("ip", "addr", "add", f"{GATEWAY}/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for number, name in enumerate(names):
            link = f"xv{number}-{os.getpid()}"
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "del", name)
            run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", link, "master", bridge, "up")
            run("ip", "-n", name, "addr", "add", f"10.213.77.{number + 2}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                run("ip", "-n", name, "link", "set", device, "up")
        yield


class Node:
    """A machine that starts the team's command: it is pid 1 in every one of them."""

    def __init__(self, name, folder, *, minutes):
        self.name, self.folder = name, folder
        folder.mkdir()
        (folder / "clock.c").write_text(CLOCK)
        run("cc", "-shared", "-fPIC", f"-DWRONG_BY={60 * minutes}", "-o", folder / "clock.so", folder / "clock.c")
        (folder / "id").write_text(f"{abs(hash(name)):032x}\n")
        (folder / "node.py").write_text(NODE)
        synthetic.generate(folder / f"xrays-of-{name}", patients=40, seed=0)

    def start(self, *overrides):
        own = [f"data.root={self.folder}/xrays-of-{self.name}", f"home={self.folder}/home"]
        command = [sys.executable, self.folder / "node.py", "train", "-m", *overrides, *own]
        spaces = ["unshare", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
        enter = ["ip", "netns", "exec", self.name, *spaces, "sh", "-ec", ENTER, "sh", self.name, self.folder / "id"]
        clock = ["env", f"LD_PRELOAD={self.folder}/clock.so"]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in [*enter, *clock, *command]], stdout=log, stderr=log, cwd=self.folder
            )

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def signal(self, number):
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def vanish(self):
        self.process.kill()  # and with it pid 1, and all else
        self.process.wait()


def wait_for(condition, *nodes, seconds=900):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        assert all(node.process.poll() is None for node in nodes), [node.log[-3000:] for node in nodes]
        time.sleep(0.5)
    raise AssertionError([node.log[-3000:] for node in nodes])


@contextmanager
def mlflow_server(postgresql, folder):
    """A server without a login, at the nodes' gateway."""
    port, store = postgresql.port + 1, postgresql.url("mlflow")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store,
        "--host",
        GATEWAY,
        "--port",
        port,
    ]
    command += ["--artifacts-destination", folder / "artifacts", "--workers", "1", "--allowed-hosts", "*"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: answers(f"http://{GATEWAY}:{port}/health"))
        yield f"http://{GATEWAY}:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def answers(url):
    with suppress(OSError):
        return urlopen(url, timeout=5).read()
    return None


@pytest.mark.long
def test_sixty_trials_on_four_nodes_of_which_two_die_and_one_sleeps(postgresql, records, tmp_path, monkeypatch):
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "cc"))):
        pytest.skip("needs root, unshare, iproute2 and a C compiler")
    names = {"leader": -5, "vanishes": 5, "sleeps": -2, "lasts": 4}  # minutes that their clocks are wrong by
    nodes = leader, vanishes, sleeps, lasts = [Node(name, tmp_path / name, minutes=m) for name, m in names.items()]
    with network(names), ExitStack() as stack:
        postgresql.admit(NETWORK, at=GATEWAY)
        storage = postgresql.url("sweeps")
        monkeypatch.setenv("XRAY_SWEEP_STORAGE", storage.replace("127.0.0.1", GATEWAY))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.enter_context(mlflow_server(postgresql, tmp_path)))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        records = replace(records, sweeps=storage, mlflow=postgresql.url("mlflow"))
        sweep = ["model=mlp", "data.image_size=32", "trainer.max_epochs=2", "trainer.threads=1", "evaluation=quick"]
        sweep += ["optimizer.lr=tag(log,interval(1e-4,1e-2))", f"sweep.n_trials={TRIALS}", "sweep.name=nodes"]
        sweep += ["sweep.pruner=median", "sweep.max_failures=null", f"sweep.stale_after={GRACE}"]
        sweep += ["tracking.system_metrics=false"]
        for node in nodes:
            stack.callback(node.vanish)
            node.start(*sweep)
            wait_for(lambda: "trials to go" in leader.log, leader)

        def trials(node=None, *states):
            return [
                trial
                for trial in records.trials("nodes")
                if (not states or trial.state.name in states)
                and (not node or trial.user_attrs.get("worker", {}).get("host") == node.name)
            ]

        wait_for(lambda: all(trials(node, "COMPLETE", "PRUNED") for node in nodes), *nodes)
        assert {trial.user_attrs["worker"]["pid"] for trial in trials() if "worker" in trial.user_attrs} == {1}
        wait_for(lambda: trials(vanishes, "RUNNING"), *nodes)
        vanishes.vanish()
        wait_for(lambda: any(trial.intermediate_values for trial in trials(sleeps, "RUNNING")), leader, sleeps, lasts)
        sleeps.signal(signal.SIGSTOP)
        [paused] = trials(sleeps, "RUNNING")
        wait_for(lambda: records.trials("nodes")[paused.number].state.name == "FAIL", leader, lasts)
        postgresql.control("-m", "immediate", "restart")
        sleeps.signal(signal.SIGCONT)
        wait_for(lambda: "its late result is dropped" in sleeps.log, leader, lasts, sleeps)
        wait_for(lambda: trials(leader, "RUNNING"), leader, lasts, sleeps)
        assert "trials to go" not in sleeps.log + lasts.log  # clocks ten minutes apart made nobody lead as well
        leader.vanish()
        for node in (sleeps, lasts):
            assert node.process.wait(1200) == 0, node.log
        assert len(trials(None, "FAIL")) >= 3
        records.require_accounted("nodes", TRIALS, ends={"KILLED", "FAILED"})
        assert "RUNNING" not in {run.info.status for run in records.runs()}
