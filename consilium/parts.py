"""What a package of one's own offers its parts with: `Part`, and the settings that each kind derives its own from.

    [project.entry-points."consilium.methods"]
    my_method = "my_package:PART"

`PART = Part(MySettings, MyMethod)` stands in the module `my_package`; `consilium new` writes such a package.
"""

from consilium.common.study.method_base import MethodSettings
from consilium.common.study.metrics import MetricSettings
from consilium.common.study.models import ModelSettings
from consilium.common.study.parts import Part
from consilium.common.study.site import DataSettings
from consilium.common.study.strategies import StrategySettings
from consilium.common.study.task_base import TaskBase as TaskSettings
from consilium.common.study.weightings import FactorSettings

__all__ = [
    "DataSettings",
    "FactorSettings",
    "MethodSettings",
    "MetricSettings",
    "ModelSettings",
    "Part",
    "StrategySettings",
    "TaskSettings",
]
