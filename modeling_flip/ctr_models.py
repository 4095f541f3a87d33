"""Every model that predicts clicks."""

from .modeling_ctr_bert import CTRBertForCTR
from .modeling_flip import FlipForCTR
from .modeling_morec import MoRecForCTR
from .modeling_p5 import P5ForCTR

# By model_type.
CTR_MODELS = {cls.config_class.model_type: cls for cls in (FlipForCTR, CTRBertForCTR, MoRecForCTR, P5ForCTR)}
