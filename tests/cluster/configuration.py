"""The configuration files of the test cluster, as text."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """What the cluster looks like. All of it is on one machine, on loopback addresses."""

    directory: Path
    host: str
    user: str
    nodes: int = 4
    cpus: int = 8
    memory_mb: int = 16000
    gpus: int = 4
    port: int = 17917  # of the first daemon; slurmdbd and the nodes follow
    accounting: bool = True
    confine: bool = False  # jobs that outgrow their memory are killed by the kernel: task/cgroup, on cgroup v1
    sigterm: bool = False  # preemption is announced by SIGTERM alone, as Slurm does it unless told otherwise
    prefix: str = "node"
    most_tasks: int = 10001  # MaxArraySize
    limits: bool = False  # limits of associations and QOS hold

    @property
    def conf(self) -> Path:
        """slurm.conf."""
        return self.directory / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """Where munged listens."""
        return self.directory / "run" / "munge.sock"

    @property
    def database_socket(self) -> Path:
        """Where MariaDB listens; nothing else of it does."""
        return self.directory / "db" / "sock"

    def node_names(self) -> list[str]:
        """node1, node2, ..."""
        return [f"{self.prefix}{n}" for n in range(1, self.nodes + 1)]


def slurm_conf(layout: Layout) -> str:
    """Short waits wherever Slurm allows it; three partitions, of which the last is preempted by the other two.

    - `cred_expire`: a requeued job waits for its first run's credential to be void, 120 s by default.
    - `config_overrides`: nodes declare more than there is, and nothing is bound or confined; so it works in containers.
    - `preempt_send_user_signal` is in SlurmctldParameters in 22.05; elsewhere it is silently ignored.
    """
    d = layout.directory
    enforced = "\nAccountingStorageEnforce=associations,limits" if layout.limits else ""
    accounting = (
        f"""JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={layout.port + 1}
AccountingStoragePass={layout.munge_socket}
AccountingStorageTRES=gres/gpu{enforced}"""
        if layout.accounting
        else "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none"
    )
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={layout.host} NodeAddr=127.0.0.1 Port={layout.port + 2 + n} CPUs={layout.cpus} "
        f"Boards=1 SocketsPerBoard=1 CoresPerSocket={layout.cpus} ThreadsPerCore=1 RealMemory={layout.memory_mb} "
        f"Gres=gpu:fake:{layout.gpus} State=UNKNOWN"
        for n, name in enumerate(layout.node_names())
    )
    return f"""ClusterName=mudi
SlurmctldHost={layout.host}(127.0.0.1)
SlurmctldPort={layout.port}
SlurmUser={layout.user}
SlurmdUser={layout.user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={layout.munge_socket},cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={d}/ctld
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/run/slurmctld.daemon
SlurmdPidFile={d}/run/slurmd.%n.daemon
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
MpiDefault=none
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin={"task/cgroup" if layout.confine else "task/none"}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
GresTypes=gpu
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=15
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,sched_min_interval=100000,bf_interval=2
PriorityType=priority/basic
ReturnToService=2
EnforcePartLimits=ALL
MaxArraySize={layout.most_tasks}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{"" if layout.sigterm else "SlurmctldParameters=preempt_send_user_signal"}
JobRequeue=1
{accounting}
JobCompType=jobcomp/none
{nodes}
PartitionName=main    Nodes=ALL Default=YES MaxTime=1440 DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=short   Nodes=ALL MaxTime=1 DefaultTime=1 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=preempt Nodes=ALL MaxTime=1440 DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 State=UP
"""


def gres_conf(layout: Layout) -> str:
    """Pretended GPUs: links to /dev/null, as Slurm wants character devices whose names end in an index."""
    files = f"{layout.directory}/dev/gpu[0-{layout.gpus - 1}]"
    lines = [f"NodeName={name} Name=gpu Type=fake File={files}" for name in layout.node_names()]
    return "AutoDetect=off\n" + "\n".join(lines) + "\n"


def cgroup_conf() -> str:
    """Memory alone is held to what a job asked for; no swap instead."""
    return "CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"


def slurmdbd_conf(layout: Layout) -> str:
    """The accounting daemon. It takes MariaDB's socket from MYSQL_UNIX_PORT."""
    d = layout.directory
    return f"""AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost={layout.host}
DbdAddr=127.0.0.1
DbdPort={layout.port + 1}
SlurmUser={layout.user}
LogFile={d}/log/slurmdbd.log
PidFile={d}/run/slurmdbd.daemon
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
"""
