"""The published numbers again, laid out as their sources lay them out: other order of classes, per cent where they give
per cent, no names of ours. Typed from the READMEs and tables that are named, not from `published.csv`."""

from collections.abc import Iterator, Mapping, Sequence

Numbers = Mapping[str, float]
Key = tuple[str, str, str, str]
"""Of whom, the variant, the kind of images, what is predicted."""
MODELS = ("Model_I", "Model_II", "Model_III")
VORTEX_FIRST, NO_SUB_FIRST = ("auc_axion", "auc_cdm", "auc_no_sub"), ("auc_no_sub", "auc_cdm", "auc_axion")

SACHDEV = """
CvT          91.54 .9714 .9657 .9991   99.41 .9987 .9990 1.0000   99.04 .9986 .9992 1.0000
CrossFormer  91.20 .9508 .9511 .9996   97.42 .9856 .6041 .9998    98.13 .9782 .9096 .9998
LeViT        91.64 .9720 .8612 .9997   97.12 .9936 .9800 1.0000   97.97 .9981 .9973 1.0000
TwinsSVT     91.08 .6678 .9179 .9993   97.44 .9812 .6572 .9996    98.48 .9942 .5183 .9999
CCT          89.71 .9632 .9462 .9988   69.68 .9566 .8216 .9061    99.48 .9999 .9998 1.0000
CrossViT     84.20 .9261 .8816 .9988   91.33 .9816 .9386 .9959    81.29 .5192 .5106 .5419
CaiT         67.93 .6726 .5640 .7497   62.97 .9318 .6548 .7833    69.38 .5160 .4986 .5195
T2TViT       88.12 .9706 .6502 .9902   94.33 .9883 .9095 .9983    77.29 .6515 .9737 .8980
PiT          40.63 .5981 .5584 .6580   33.60 .5351 .5022 .5378    34.18 .5176 .5153 .5294
Swin         34.16 .5066 .4886 .4945   33.72 .5056 .4922 .5022    33.56 .4357 .6116 .5909
"""
"""ML4SCI/DeepLense, Transformers_Classification_DeepLense_Kartik_Sachdev/README.md: for each model of images the
accuracy in per cent and the AUC of axion, cdm, no_sub."""

SACHDEV_QUOTED = """
TwinsSVT  I   .6678 .9462 .9988
TwinsSVT  II  .9566 .8216 .9061
TwinsSVT  III .9999 .9998 1.0000
CCT       II  .9816 .9386 .9959
CCT       III .5192 .5106 .5419
CrossViT  I   .6726 .5640 .7497
CrossViT  II  .9318 .6548 .7833
CrossViT  III .5160 .4986 .5195
"""
"""The same table as the proposal of the benchmark of transformers has it, where that differs: vortex, cdm, no_sub."""

SACHDEV_SSL = """
ResNet34 by SimSiam  II  .9042 .7718 .6839
ResNet50 by SimSiam  II  .9927 .9973 .9946
CvT by DINO          II  .9938 .4250 .5616
CvT by DINO          III .8544 .9661 .8991
"""

BEFORE = """
EfficientNet            I   .9858 .9811 .9956
EfficientNet            II  1 1 1
EfficientNet            III 1 1 1
ViT                     I   .9772 .9693 .9988
ViT                     III 1 1 1
ConViT                  I   .9162 .8832 .9694
ConViT                  II  .9998 .9991 .9998
ConViT                  III 1 .9999 1
CrossViT                I   .9326 .8802 .9871
CrossViT                II  1 .9999 1
CrossViT                III 1 1 1
BottleNeck Transformer  I   .9872 .9807 .9993
BottleNeck Transformer  II  1 1 1
BottleNeck Transformer  III 1 1 1
Efficient Former        I   .9949 .9899 .9995
Efficient Former        II  1 1 1
Efficient Former        III 1 1 1
CoaT                    I   .9878 .9804 .9996
CoaT                    II  1 1 1
CoaT                    III 1 1 1
CoatNet                 I   .9952 .9917 .9996
CoatNet                 II  1 1 1
CoatNet                 III 1 1 1
Swin                    I   .9621 .9420 .9983
Swin                    II  1 1 1
Swin                    III 1 1 1
"""
"""Set A of the same proposal: vortex, cdm, no_sub."""

SRIVASTAVA = """
Simple CNN Baseline                 I   .9923 .9856 .9971
Simple CNN Baseline                 II  .9988 .9978 .9997
Simple CNN Baseline                 III 1.0000 1.0000 1.0000
ConViT (Tiny version)               I   .9522 .9216 .9909
ConViT (Tiny version)               II  .9445 .8475 .9617
ConViT (Tiny version)               III .9910 .9668 .9856
ConViT (Small version)              I   .9633 .9221 .9892
ConViT (Small version)              II  .9407 .7223 .9452
ConViT (Small version)              III .9901 .9582 .9876
ViT-ResNet Hybrid (Tiny version)    I   .9447 .8863 .9881
ViT-ResNet Hybrid (Tiny version)    II  .9410 .8391 .9500
ViT-ResNet Hybrid (Tiny version)    III .9888 .9695 .9912
ViT-ResNet Hybrid (Small version)   I   .9781 .9680 .9978
ViT-ResNet Hybrid (Small version)   II  .9553 .8714 .9633
ViT-ResNet Hybrid (Small version)   III .9991 .9908 .9952
Bottleneck Transformers             I   .9911 .9845 .9995
Bottleneck Transformers             II  .9607 .9043 .9772
Bottleneck Transformers             III .9992 .9927 .9976
"""
"""ML4SCI/DeepLense, DeepLense_Classification_Transformers_Archil_Srivastava/README.md: axion, cdm, no_sub."""

DESHMUKH = """
ResNet-50                         .97 .96 1.0   .98 .92 .98   .96 .95 .99
ResNet-50, contrastive, rotations .92 .91 1.0   .99 .99 1.0   1.0 .99 1.0
ResNet-50, contrastive, noise     .96 .95 1.0   .99 .99 1.0   1.0 .99 1.0
ResNet-50, BYOL                   .95 .93 1.0   1.0 .98 1.0   .98 .92 .98
"""
"""ML4SCI/DeepLense, Deeplens_Self_Supervised_Learning_Yashwardhan_Deshmukh/README.md: axion, cdm, no_sub."""

SINGH = """
C4        .9986 .9942 .9986  97.75  95.76
C8        .9991 .9976 .9995  98.63  96.35
D4        .9994 .9969 .9994  98.43  96.81
D8        .9988 .9964 .9991  97.93  96.89
ResNet-18 .9969 .9845 .9974  97.00  93.49
"""
"""ML4SCI/DeepLense, Equivariant_Neural_Networks_for_DeepLense_Apoorva_Singh: no_sub, sphere, vortex of Model F, the
best test accuracy in per cent of Model F, of Model J."""

JOLLY = """
C8 by its name, C4 by its code  94.67 .9921   99.02 .99967  99.29 .99972
ResNet-18, pretrained           94.48 .99207  99.13 .99959  99.28 .99948
"""
"""ML4SCI/DeepLense, Equivariant_Neural_Networks_for_DeepLense_GEO: accuracy in per cent and macro AUC."""

GUAN = """
CvT-13    .2779 .2548 .1403
ResNet-34 .2849 .2162 .1332
ViT       .4420 .2437 .2175
"""
"""ML4SCI/DeepLense, DeepLense_Regression_Zhongchao_Guan: mean absolute error of log10 of the mass."""

PHYSICS = """
ResNet-18, pretrained                .9926 .9810 .9933 .9890
LensViT-PINN                         .9902 .9804 .9932 .9879
"""
"""EmanAbdelhaleem/PINN-for-lensing-images-multi-classification: no_sub, subhalo, vortex, mean AUC."""

SINGLE: Mapping[tuple[str, str, str], Numbers] = {
    ("S. K. Mahanta 2022", "EfficientNet-B2, pretrained", "Model_I"): {"accuracy": 0.96},
    ("S. K. Mahanta 2022", "EfficientNet-B1, pretrained", "Model_II"): {"accuracy": 0.99},
    ("S. K. Mahanta 2022", "EfficientNet-B1, pretrained", "Model_III"): {"accuracy": 1.00},
    ("A. Ojha 2024", "ResNet-18", "Model_II"): {"accuracy": 0.818},
    ("A. Ojha 2024", "ViT", "Model_II"): {"accuracy": 0.863},
    ("A. Ojha 2024", "CaiT", "Model_II"): {"accuracy": 0.878},
    ("A. Ojha 2024", "Lensiformer", "Model_II"): {"accuracy": 0.957},
    ("D. Srivastava 2025", "ResNet-18, pretrained, 2025", "Model_III"): {"accuracy": 0.9974, "auc_macro": 0.9999},
    ("D. Srivastava 2025", "ViT, 2025", "Model_III"): {"auc_macro": 0.9965},
    ("D. Srivastava 2025", "Swin, 2025", "Model_III"): {"auc_macro": 0.866},
    ("physics-informed classification", "LensViT-PINN, gradient preprocessing", "gsoc"): {"auc_macro": 0.8786},
    ("EfficientNet with attention", "EfficientNet-B2 with attention, pretrained", "gsoc"): {
        "accuracy": 0.9425,
        "auc_no_sub": 0.9899,
        "auc_axion": 0.9879,
        "auc_cdm": 0.9848,
    },
    ("evaluation test", "ResNet-50", "gsoc"): {"auc_no_sub": 0.998, "auc_cdm": 0.985, "auc_axion": 0.968},
}

IYER = """
            300              600              1200             all
supervised  89.7098 .9547    92.2164 .9445    93.1398 .9780    94.9868 .9861
            90.7652 .9534    92.6121 .9579    93.4037 .9678    94.9868 .9843
dino        91.1609 .9689    92.6121 .9653    93.7995 .9858    94.9868 .9865
            91.5567 .9703    92.2164 .9667    93.2718 .9798    94.1953 .9876
simsiam     89.8417 .9540    92.2164 .9691    94.9868 .9843    95.1187 .9864
            90.3694 .9539    92.0844 .9589    93.5356 .9817    94.8549 .9832
ibot        91.4248 .9669    92.2164 .9631    93.7995 .9844    95.6464 .9906
            91.9525 .9668    92.6121 .9696    93.1398 .9814    94.4591 .9885
"""
"""ML4SCI/DeepLense, DeepLense_SSL_from_real_dataset_Sreehari_Iyer/README.md: accuracy in per cent and AUC, ViT-S/8
above ViT-B/8, by the number of labels."""

IYER_BEFORE = """
supervised  86.00 88.03 89.54 93.76
            86.68 88.36 90.73 93.09
dino        88.20 89.54 90.73 92.41
            89.54 89.54 92.58 94.60
ibot        88.53 89.21 90.73 92.92
"""
"""DeepLense_SSL_Sreehari_Iyer: accuracy in per cent of the older split; of iBOT ViT-S/8 alone."""


def lines(table: str, num_numbers: int) -> Iterator[tuple[str, list[float]]]:
    """The name and the numbers of each line of a table."""
    for line in table.strip().splitlines():
        name, *numbers = line.rsplit(maxsplit=num_numbers)
        yield name.strip(), [float(number) for number in numbers]


def by_model(
    table: str, who: str, names: Sequence[str], scales: Sequence[float], target: str = "class"
) -> Iterator[tuple[Key, Numbers]]:
    """A table that has all models of images in each line."""
    for variant, numbers in lines(table, 3 * len(names)):
        for k, kind in enumerate(MODELS):
            part = numbers[k * len(names) : (k + 1) * len(names)]
            yield (
                (who, variant, kind, target),
                {name: value / scale for name, value, scale in zip(names, part, scales, strict=True)},
            )


def each_model(table: str, who: str, ending: str = "") -> Iterator[tuple[Key, Numbers]]:
    """A table that has one model of images in each line."""
    for words, numbers in lines(table, 3):
        variant, _, kind = words.rpartition(" ")
        key = (who, variant.strip() + ending, f"Model_{kind}", "class")
        yield key, dict(zip(VORTEX_FIRST, numbers, strict=True))


def singh() -> Iterator[tuple[Key, Numbers]]:
    """The equivariant networks."""
    for variant, (*areas, model_f, model_j) in lines(SINGH, 5):
        of_f = dict(zip(NO_SUB_FIRST, areas, strict=True)) | {"accuracy": model_f / 100}
        yield ("A. Singh 2021", variant, "other", "class"), of_f
        yield ("A. Singh 2021", f"{variant}, Model J", "other", "class"), {"accuracy": model_j / 100}


def published() -> dict[Key, Numbers]:
    """All numbers about models."""
    who = "physics-informed classification"
    found = [
        *by_model(SACHDEV, "K. Sachdev 2022", ("accuracy", *VORTEX_FIRST), (100, 1, 1, 1)),
        *each_model(SACHDEV_QUOTED, "quoted in the proposal of the benchmark of transformers (set K)", ", as quoted"),
        *each_model(SACHDEV_SSL, "K. Sachdev 2023"),
        *each_model(BEFORE, "measured before the benchmark of transformers (set A)"),
        *each_model(SRIVASTAVA, "A. Srivastava 2022"),
        *by_model(DESHMUKH, "Y. Deshmukh 2023", VORTEX_FIRST, (1, 1, 1)),
        *singh(),
        *by_model(JOLLY, "G. Jolly 2023", ("accuracy", "auc_macro"), (100, 1)),
        *by_model(GUAN, "Z. Guan", ("mae",), (1,), "log10_axion_mass"),
        *(((*key, "class"), numbers) for key, numbers in SINGLE.items()),
    ]
    for variant, numbers in lines(PHYSICS, 4):
        found.append(((who, variant, "gsoc", "class"), dict(zip((*NO_SUB_FIRST, "auc_macro"), numbers, strict=True))))
    assert len(dict(found)) == len(found), "two numbers under one name"
    return dict(found)


def published_labels() -> dict[tuple[str, str, int, bool], Numbers]:
    """All numbers about few labels: by method, network, number of labels, and whether they are of the older split."""
    found: dict[tuple[str, str, int, bool], Numbers] = {}
    for older, table, most in ((False, IYER.partition("all")[2], 3863), (True, IYER_BEFORE, 3256)):
        method = ""
        for line in table.strip().splitlines():
            first, *numbers = line.split()
            if first[0].isalpha():
                method, network = first, "ViT-S/8"
            else:
                numbers, network = [first, *numbers], "ViT-B/8"
            step = 1 if older else 2
            for k, count in enumerate((300, 600, 1200, most)):
                part = [float(each) for each in numbers[step * k : step * (k + 1)]]
                areas = {} if older else {"auc": part[1]}
                found[method, network, count, older] = {"accuracy": part[0] / 100} | areas
    return found
