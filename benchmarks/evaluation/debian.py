"""What debian.yaml names."""

from benchmarks.evaluation.systems import DataSet

DATA = DataSet(
    name="debian",
    item_text="{item_id}. {synopsis}",
    user_text="{name}. {synopsis}",
    training={"encoder": ["--query", "user", "--user-text", "{name}. {synopsis}"]},
)

item_text, user_text = DATA.text("item"), DATA.text("user")
item_tuned, user_tuned = DATA.text("item", tuned=True), DATA.text("user", tuned=True)
user_bert4rec, item_bert4rec = DATA.sequence("bert4rec", 65), DATA.item("bert4rec", 65)
user_unisrec, item_unisrec = DATA.sequence("unisrec"), DATA.item("unisrec")
user_whitening, item_whitening = DATA.sequence("whitening"), DATA.item("whitening")
