"""A model of two inputs, and its samples: a digit, and which of two questions is asked about it."""

import torch
from sklearn.datasets import load_digits
from torch import nn


class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()
        )
        self.question, self.hidden, self.head = nn.Linear(2, 64), nn.Linear(512, 64), nn.Linear(64, 2)

    def forward(self, image, question):
        return self.head(torch.relu(self.hidden(self.image(image)) + self.question(question)))


def samples():
    images, digits = load_digits(return_X_y=True)
    for i, (image, digit) in enumerate(
        zip(torch.tensor(images).float().reshape(-1, 1, 8, 8) / 16, digits, strict=True)
    ):
        odd_or_large = torch.tensor([1.0, 0.0]) if i % 2 else torch.tensor([0.0, 1.0])
        yield (image, odd_or_large), int(digit % 2 if i % 2 else digit > 4)
