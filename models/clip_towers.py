"""Towers of a CLIP model that this project does not build itself, and image towers alone."""

from __future__ import annotations

from torch import Tensor, nn


class PooledVit(nn.Module):
    """A timm ViT up to its classification head: images (B, 3, H, W) -> (B, C)."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_head(self.vit.forward_features(images), pre_logits=True)


class _TransformersImages(nn.Module):
    """The image tower of transformers' ``CLIPModel``: images (B, 3, H, W) -> (B, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.vision(pixel_values=images).pooler_output)


class TransformersTowers(nn.Module):
    """transformers' ``CLIPModel`` and ``CLIPTokenizer``."""

    def __init__(self, model: nn.Module, tokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.text_config.max_position_embeddings
        self.pad_id = tokenizer.pad_token_id

    def ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts).input_ids if texts else []

    def scale(self) -> Tensor:
        return self.model.logit_scale.exp()

    # What ``get_image_features`` returns differs between versions of transformers.

    def image_tower(self) -> nn.Module:
        return _TransformersImages(self.model)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, D). Attention is causal, so the end token does not attend to padding."""
        return self.model.text_projection(self.model.text_model(input_ids=tokens).pooler_output)
