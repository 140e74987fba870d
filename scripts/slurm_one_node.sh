#!/bin/sh
# A Slurm of one node in one folder, for trying sweeps on a cluster's launcher: no systemd, no accounting.
#   scripts/slurm_one_node.sh start DIR     as root, with Debian's packages: apt-get install slurm-wlm munge
#   export SLURM_CONF=DIR/slurm.conf
#   xray train -m sweep=optimizer hydra/launcher=submitit_slurm hydra.launcher.timeout_min=60
#   scripts/slurm_one_node.sh stop DIR
set -eu

action=${1:?start or stop}
folder=$(realpath -m "${2:?a folder}")
cpus=${SLURM_CPUS:-4}

case $action in
start)
    for program in slurmctld slurmd munged; do
        command -v $program > /dev/null || { echo "$program is missing: apt-get install slurm-wlm munge" >&2; exit 2; }
    done
    mkdir -p "$folder/state" "$folder/spool" "$folder/log" "$folder/run"
    host=$(hostname -s)
    cat > "$folder/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$host
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
MpiDefault=none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=3
MinJobAge=86400
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    if ! munge -n > /dev/null 2>&1; then
        install -d -o munge -g munge -m 755 /run/munge
        runuser -u munge -- "$(command -v munged)"
    fi
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ] && exit 0
        sleep 1
    done
    sinfo >&2
    exit 1
    ;;
stop)
    for daemon in slurmd slurmctld; do
        [ -f "$folder/run/$daemon.pid" ] || continue
        pid=$(cat "$folder/run/$daemon.pid")
        kill "$pid" 2> /dev/null || continue
        for _ in $(seq 100); do # it saves its state first
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.2
        done
    done
    ;;
*)
    echo "start or stop, not $action" >&2
    exit 2
    ;;
esac
