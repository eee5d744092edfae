"""The demo model's architecture: one place for the configurations of all three networks and the scheduler."""
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

VOCABULARY = 1024
TEXT_WIDTH = 192
MAX_TOKENS = 77


def autoencoder():
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=256, norm_num_groups=8,
        block_out_channels=(32, 64, 128, 128), layers_per_block=1, act_fn="silu",
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)


def text_encoder():
    end = VOCABULARY - 1
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=4,
        num_attention_heads=6, max_position_embeddings=MAX_TOKENS, hidden_act="quick_gelu",
        projection_dim=TEXT_WIDTH, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end))


def unet():
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, cross_attention_dim=TEXT_WIDTH, norm_num_groups=16,
        block_out_channels=(96, 128, 192), layers_per_block=1, attention_head_dim=4, act_fn="silu",
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))


def scheduler():
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=True, steps_offset=1, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing")
