"""`train.py` as with FSDP2 on GPUs, on CPUs: accelerate leaves a plugin for FSDP aside where processes have no GPU."""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

import train

with_plugin = AcceleratorState.__init__


def keep_plugin(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    with_plugin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    # Without a plugin it is the state that there is already, of which accelerate takes the type from the processes again.
    if plugin := fsdp_plugin or vars(self).get("fsdp_plugin"):
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = keep_plugin
    train.main(sys.argv[1:])
