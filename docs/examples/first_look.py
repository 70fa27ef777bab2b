# %% [markdown]
# # A first look at simulated lenses
#
# This script is a notebook in the percent format: Jupyter (with jupytext), VS Code and Spyder show it as cells.
# It simulates lenses, trains a small network in plain torch, and looks at its mistakes. It takes a minute on a CPU.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional

import deeplense

NUM_TRAIN, NUM_TEST, NUM_EPOCHS = 600, 300, 6

# %% Simulate: two splits never share an image.
train = deeplense.simulate("Model_III", "noisy", num_images=NUM_TRAIN, seed=0, split="train")
test = deeplense.simulate("Model_III", "noisy", num_images=NUM_TEST, seed=0, split="test")
print(train.images.shape, train.unit, train.classes)

# %% Look at two images of each class.
figure, axes = plt.subplots(2, 3, figsize=(6, 4.4), layout="constrained")
for place, each in enumerate(axes.flat):
    each.imshow(np.arcsinh(train.images[place, 0]), cmap="magma")
    each.set_title(train.classes[train.labels[place]])
    each.axis("off")
figure.savefig("lenses.png", dpi=120)

# %% Train: the stretch and the scale come from the training images alone.
mean, std = train.images.mean(), train.images.std()


def inputs(images: np.ndarray) -> torch.Tensor:
    """Return network inputs (N, 1, H, W)."""
    return torch.from_numpy(np.arcsinh((images - mean) / std))


torch.manual_seed(0)
network = deeplense.build_model("simple_cnn", image_size=64, in_chans=1, num_outputs=len(train.classes))
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
labels = torch.from_numpy(train.labels)
for epoch in range(NUM_EPOCHS):
    for rows in torch.randperm(len(labels)).split(32):
        loss = functional.cross_entropy(network(inputs(train.images[rows.numpy()])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

# %% Predict the test images.
network.eval()
with torch.no_grad():
    probabilities = network(inputs(test.images)).softmax(dim=1).numpy()
accuracy = (probabilities.argmax(axis=1) == test.labels).mean()
error = np.sqrt(accuracy * (1 - accuracy) / len(test.labels))
print(f"accuracy {accuracy:.3f} +- {error:.3f} on {len(test.labels)} images that were not trained on")
