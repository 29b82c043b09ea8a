"""What movielens.yaml names."""

from benchmarks.evaluation.systems import DataSet

DATA = DataSet(
    name="movielens",
    item_text="{title}. {genres}",
    training={
        # 560 people with long histories: an epoch is a few steps.
        "bert4rec": ["--batch", "16", "--patience", "20"],
        "encoder": ["--liked-from", "4"],
    },
)

item_text = DATA.text("item")
item_tuned = DATA.text("item", tuned=True)
user_bert4rec, item_bert4rec = DATA.sequence("bert4rec", 65), DATA.item("bert4rec", 65)
user_unisrec, item_unisrec = DATA.sequence("unisrec"), DATA.item("unisrec")
user_whitening, item_whitening = DATA.sequence("whitening"), DATA.item("whitening")
