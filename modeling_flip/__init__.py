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
from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel, FlipPreTrainedModel
from .processing_flip import FlipDataset, FlipProcessor
from .tabular_towers import TABULAR_TOWERS, TabularTower, register_tabular_tower

AutoConfig.register("flip", FlipConfig)
AutoModel.register(FlipConfig, FlipModel)
AutoModelForPreTraining.register(FlipConfig, FlipForPreTraining)
AutoModelForSequenceClassification.register(FlipConfig, FlipForCTR)
AutoProcessor.register(FlipConfig, FlipProcessor)

__version__ = "0.1.0"
__all__ = [
    "TABULAR_TOWERS",
    "FeatureVocabulary",
    "FlipConfig",
    "FlipDataCollator",
    "FlipDataset",
    "FlipForCTR",
    "FlipForPreTraining",
    "FlipModel",
    "FlipPreTrainedModel",
    "FlipProcessor",
    "PretrainingCollator",
    "TabularTower",
    "register_tabular_tower",
]
