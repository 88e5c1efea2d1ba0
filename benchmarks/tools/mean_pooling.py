"MiniLM's sentence network: an encoder, the mean over its tokens, a head"
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    def __init__(self, encoder, head):
        super().__init__()
        self.encoder, self.dropout, self.head = encoder, nn.Dropout(0.1), head

    def forward(self, input_ids, attention_mask, labels=None):
        vectors = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        mean = (vectors * mask).sum(1) / mask.sum(1)
        logits = self.head(self.dropout(mean))
        return dict(logits=logits) if labels is None else dict(loss=F.cross_entropy(logits, labels), logits=logits)
