"""FLIP for click-through rate prediction: ID models and pretrained language models, aligned field by field."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

from .configuration_flip import FlipConfig
from .data_collator import FlipDataCollator, PretrainingCollator
from .feature_vocabulary import FeatureVocabulary
from .metrics import CtrMetrics
from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel, FlipPreTrainedModel
from .processing_flip import FlipDataset, FlipProcessor
from .tabular_towers import TABULAR_TOWERS, TabularTower, register_tabular_tower
from .trainer_flip import FlipTrainer, FlipTrainingArguments
from .version import __version__

AutoConfig.register("flip", FlipConfig)
AutoModel.register(FlipConfig, FlipModel)
AutoModelForPreTraining.register(FlipConfig, FlipForPreTraining)
AutoModelForSequenceClassification.register(FlipConfig, FlipForCTR)
AutoProcessor.register(FlipConfig, FlipProcessor)

__all__ = [
    "TABULAR_TOWERS",
    "CtrMetrics",
    "FeatureVocabulary",
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
    "PretrainingCollator",
    "TabularTower",
    "__version__",
    "register_tabular_tower",
]
