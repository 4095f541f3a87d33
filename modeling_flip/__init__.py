"""FLIP for click-through rate prediction: ID models and pretrained language models, aligned field by field."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_flip import FlipConfig
from .ctr_models import CTR_MODELS
from .data_collator import FlipDataCollator, PretrainingCollator
from .feature_vocabulary import FeatureVocabulary
from .fields import Field
from .modeling_ctr_bert import CTRBertConfig, CTRBertForCTR
from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel, FlipPreTrainedModel
from .modeling_morec import MoRecConfig, MoRecForCTR
from .modeling_p5 import P5Config, P5ForCTR
from .pipeline_flip import CtrPredictionPipeline
from .processing_flip import FlipProcessor
from .row_dataset import FlipDataset
from .serving.exported import ExportedConfig, ExportedForCTR
from .tabular_towers import TABULAR_TOWERS, TabularTower, register_tabular_tower
from .version import __version__

if TYPE_CHECKING:
    from .training.arguments import FlipTrainingArguments
    from .training.metrics import CtrMetrics
    from .training.trainer import FlipTrainer

# What only training needs, and where it is: imported when it is first asked for, so that a score waits for none of it.
LAZY = {
    "CtrMetrics": ".training.metrics",
    "FlipTrainer": ".training.trainer",
    "FlipTrainingArguments": ".training.arguments",
}

AutoModel.register(FlipConfig, FlipModel)
AutoModelForPreTraining.register(FlipConfig, FlipForPreTraining)
for model_class in CTR_MODELS.values():
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModelForSequenceClassification.register(model_class.config_class, model_class)
    AutoProcessor.register(model_class.config_class, FlipProcessor)
AutoConfig.register(ExportedConfig.model_type, ExportedConfig)
AutoModelForSequenceClassification.register(ExportedConfig, ExportedForCTR)
AutoProcessor.register(ExportedConfig, FlipProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "ctr-prediction", CtrPredictionPipeline, pt_model=AutoModelForSequenceClassification, type="multimodal"
)

__all__ = [
    "TABULAR_TOWERS",
    "CTRBertConfig",
    "CTRBertForCTR",
    "CtrMetrics",
    "CtrPredictionPipeline",
    "FeatureVocabulary",
    "Field",
    "FlipConfig",
    "FlipDataCollator",
    "FlipDataset",
    "FlipForCTR",
    "FlipForPreTraining",
    "FlipModel",
    "FlipPreTrainedModel",
    "FlipProcessor",
    "FlipTrainer",
    "FlipTrainingArguments",
    "MoRecConfig",
    "MoRecForCTR",
    "P5Config",
    "P5ForCTR",
    "PretrainingCollator",
    "TabularTower",
    "__version__",
    "register_tabular_tower",
]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
