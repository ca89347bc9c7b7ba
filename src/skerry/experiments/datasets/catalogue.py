"""Facts about the IDX data sets: file names, shapes, checksums, and the constants to normalise with."""

from dataclasses import dataclass

FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
"""The file of each array. MNIST and Fashion-MNIST use the same names; only checksums tell them apart."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape of a uint8 array and sha256 of its bytes in C order (of an IDX file: those after the header)."""

    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Expected content of a data set.

    Attributes:
        num_classes: number of classes.
        class_names: the name of each; empty if they have none.
        mean, std: over all values of x_train / 255 (not per pixel, never of x_test).
        arrays: by the keys of ``FILES``.
    """

    num_classes: int
    mean: float
    std: float
    arrays: dict[str, ArraySpec]
    class_names: tuple[str, ...] = ()


# mean and std are (x_train / 255).mean() and .std() in float64, computed once from arrays with these checksums.
CATALOGUE = {
    "fashion-mnist": DatasetSpec(
        num_classes=10,
        mean=0.2860405969887955,
        std=0.35302424451492254,
        arrays={
            "x_train": ArraySpec((60000, 28, 28), "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"),
            "y_train": ArraySpec((60000,), "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"),
            "x_test": ArraySpec((10000, 28, 28), "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"),
            "y_test": ArraySpec((10000,), "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"),
        },
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "mnist": DatasetSpec(
        num_classes=10,
        mean=0.1306604762738429,
        std=0.30810780385646264,
        arrays={
            "x_train": ArraySpec((60000, 28, 28), "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"),
            "y_train": ArraySpec((60000,), "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13"),
            "x_test": ArraySpec((10000, 28, 28), "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"),
            "y_test": ArraySpec((10000,), "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"),
        },
    ),
    # scikit-learn's 1797 digits, values 0..16 rescaled to 0..255, split 80/20 by loading.read_digits.
    "digits": DatasetSpec(
        num_classes=10,
        mean=0.3054434961180018,
        std=0.37569899897210773,
        arrays={
            "x_train": ArraySpec((1437, 8, 8), "975aa9bd2d7f2491954e4457bd6bacfb7d88435a1f5ba1773a81e424918f59be"),
            "y_train": ArraySpec((1437,), "53f898fb81bedc1960a35a7518e140c110357f1d9c819e15be7eb86813d86b98"),
            "x_test": ArraySpec((360, 8, 8), "dd2fbba1fda39fbe84e73010e3bf951c05202a3346714d02b207dd1fb59f3208"),
            "y_test": ArraySpec((360,), "2afb26f01c4ab83cd8bfb3c55e54cc7568449a914de2d2369dc3aeb6168fcd64"),
        },
    ),
}
