"""What the page says, in English and in Chinese."""

import re

TEXTS = {
    "en": {
        "title": "Which seedling is it?",
        "tagline": "Drop a photograph of one seedling, taken from above, or of a whole tray. It stays on the machine "
        "that serves this page.",
        "mode": "The photograph shows",
        "one": "one seedling",
        "many": "a tray of plants",
        "image": "Your image",
        "map": "What speaks for the answer",
        "no map": "No single region of the image decides the answer.",
        "boxes": "The plants that were found",
        "waiting": "The answer appears here: drop an image, or choose one below.",
        "low": "nothing",
        "high": "most.",
        "outside": "Darkened: not seen.",
        "numbers": "The list names the plants by their numbers; ? means not sure.",
        "answer": "Predicted with a probability of {probability}.",
        "unsure": "Not sure",
        "unsure why": "Most likely {name}, but its probability of {probability} is below the threshold of {threshold}.",
        "unfamiliar": "Unfamiliar",
        "unfamiliar why": "The image does not look like those that the model was trained on, so it gets no answer. In "
        "grey is what the model would have said.",
        "no plant": "No green plant was found in the image, so the answer may mean nothing.",
        "many plants": "There seem to be {count} plants: with “a tray of plants” each gets its own answer.",
        "found": "{count} plants",
        "found one": "1 plant",
        "found why": "{unsure} of them not sure: their probability is below {threshold}.",
        "found unfamiliar": "{unfamiliar} of them unlike the images that the model was trained on: no answer.",
        "space": " ",
        "found sure": "Each with a probability of at least {threshold}.",
        "numbers of": "no. {numbers}",
        "none found": "No plants were found",
        "none found why": "Plants are found by their green on darker or paler ground. If the photograph shows one "
        "plant, choose “one seedling”.",
        "too large": "The image is too large",
        "too large why": "It has {width} × {height} pixels, and this page takes up to {most} million. Please drop a "
        "smaller one.",
        "broken": "The image cannot be read",
        "broken why": "The file is damaged, or it is no image ({reason}). Please drop another, such as a JPEG or PNG.",
        "overflow": "The model cannot answer",
        "overflow why": "It computed NaN or infinity, so its weights are damaged or too large. Please start this page "
        "with another model.",
        "browser tagline": "Choose photographs of seedlings, one plant each, taken from above. They are classified in "
        "this browser, and nothing is sent anywhere.",
        "choose": "Choose images, or drop them here",
        "loading": "Loading the model: {megabytes} MB, once …",
        "ready": "Ready.",
        "working": "Answered: {done} of {count}.",
        "clear": "Remove all",
        "waiting browser": "The answers appear here: choose images, or an example.",
        "not loaded": "The model could not be loaded ({reason}). Please reload the page, or try another browser.",
        "torn": "it ends too early",
        "unreadable": "this browser cannot decode it",
        "too thin": "it is too long and thin",
        "examples": "It knows these {count} species: choose one to try it",
        "tray": "A whole tray",
        "model": "Model",
        "model why": "{parameters} parameters, images of {side}",
        "model why any": "{parameters} parameters",
        "accuracy": "Accuracy",
        "accuracy of": "of its {count} validation images",
        "accuracy of folds": "of {count} images, by networks like it that were not trained on them",
        "accuracy card": "of its validation images",
        "accuracy none": "unknown",
        "accuracy none why": "seedling-hf evaluate measures it",
        "certainty": "Certainty",
        "certainty why": "The percentage is the model’s own estimate, shared out among its {count} species; below "
        "{threshold} the answer is marked “not sure” and is no more than a guess.",
        "limits": "Limits",
        "limits why": "It names one of its species whatever it is shown, other plants and things too, and its accuracy "
        "holds for images like those that it learned from.",
        "limits why familiar": "It knows only its species. Other plants and things are often noticed, called "
        "“unfamiliar” and get no answer, but not all of them; its accuracy holds for images like those that it learned "
        "from.",
        "knows": "It knows {count} classes",
        "and more": "and {count} more",
        "separator": ", ",
    },
    "zh": {
        "title": "这是哪种幼苗？",
        "tagline": "拖入一张从上方拍摄的单株幼苗照片，或整盘幼苗的照片。照片只留在运行本页面的机器上。",
        "mode": "照片里是",
        "one": "一株幼苗",
        "many": "一盘植物",
        "image": "您的图片",
        "map": "支持该答案的部位",
        "no map": "图片中没有哪个部位单独决定答案。",
        "boxes": "找到的植株",
        "waiting": "答案显示在这里：请拖入图片，或在下面选一张。",
        "low": "无",
        "high": "最多。",
        "outside": "变暗处：模型看不到。",
        "numbers": "列表按编号给出每株的名称；? 表示不确定。",
        "answer": "预测概率为 {probability}。",
        "unsure": "不确定",
        "unsure why": "最可能是{name}，但其概率 {probability} 低于阈值 {threshold}。",
        "unfamiliar": "陌生的图片",
        "unfamiliar why": "这张图片与模型训练时所用的图片不像，因此没有答案。灰色部分是模型本来会给出的结果。",
        "no plant": "图片里没有找到绿色植物，所以这个答案可能毫无意义。",
        "many plants": "图片里似乎有 {count} 株植物：选择“一盘植物”可逐株识别。",
        "found": "{count} 株植物",
        "found one": "1 株植物",
        "found why": "其中 {unsure} 株不确定：概率低于 {threshold}。",
        "found unfamiliar": "其中 {unfamiliar} 株与训练图片不像：没有答案。",
        "space": "",
        "found sure": "每株的概率都不低于 {threshold}。",
        "numbers of": "编号 {numbers}",
        "none found": "没有找到植物",
        "none found why": "植物是按绿色与地面的差别找到的。如果照片里只有一株，请选择“一株幼苗”。",
        "too large": "图片太大",
        "too large why": "图片有 {width} × {height} 像素，本页面最多接受 {most} 百万像素。请换一张小一些的。",
        "broken": "无法读取图片",
        "broken why": "文件已损坏，或者不是图片（{reason}）。请换一张，例如 JPEG 或 PNG。",
        "overflow": "模型无法回答",
        "overflow why": "模型算出了 NaN 或无穷大，说明权重已损坏或过大。请用另一个模型启动本页面。",
        "browser tagline": "选择从上方拍摄的幼苗照片，每张一株。识别在本浏览器中进行，照片不会发送到任何地方。",
        "choose": "选择图片，或拖到这里",
        "loading": "正在加载模型：{megabytes} MB，只需一次…",
        "ready": "已就绪。",
        "working": "已识别 {count} 张中的 {done} 张。",
        "clear": "全部移除",
        "waiting browser": "答案显示在这里：请选择图片，或点选一个例子。",
        "not loaded": "模型无法加载（{reason}）。请重新加载本页，或换一个浏览器。",
        "torn": "文件不完整",
        "unreadable": "此浏览器无法解码",
        "too thin": "太细长",
        "examples": "模型认识这 {count} 种植物：点选一张试试",
        "tray": "整盘幼苗",
        "model": "模型",
        "model why": "{parameters} 个参数，图片 {side}",
        "model why any": "{parameters} 个参数",
        "accuracy": "正确率",
        "accuracy of": "在 {count} 张验证图片上",
        "accuracy of folds": "在 {count} 张图片上，由没有用这些图片训练的同类网络得出",
        "accuracy card": "在验证图片上",
        "accuracy none": "未知",
        "accuracy none why": "可用 seedling-hf evaluate 测量",
        "certainty": "确定程度",
        "certainty why": "百分比是模型自己的估计，分配给它认识的 {count} 种植物；低于 {threshold} 的答案"
        "标为“不确定”，只能算猜测。",
        "limits": "局限",
        "limits why": "无论看到什么，包括其他植物和物品，它都会给出其中一种；正确率只对与训练图片相似的图片成立。",
        "limits why familiar": "它只认识这些物种。其他植物和物品往往会被发现并标为“陌生的图片”，不给答案，"
        "但并非每次都能发现；正确率只对与训练图片相似的图片成立。",
        "knows": "模型认识 {count} 个类别",
        "and more": "以及另外 {count} 个",
        "separator": "、",
    },
}
# By the Flora of China.
SPECIES = {
    "Black-grass": "大穗看麦娘",
    "Charlock": "新疆白芥",
    "Cleavers": "原拉拉藤",
    "Common Chickweed": "繁缕",
    "Common wheat": "小麦",
    "Fat Hen": "藜",
    "Loose Silky-bent": "阿披拉草",
    "Maize": "玉米",
    "Scentless Mayweed": "新疆三肋果",
    "Shepherds Purse": "荠",
    "Small-flowered Cranesbill": "小花老鹳草",
    "Sugar beet": "甜菜",
}
DEFAULT = "en"


class Words:
    """The texts of one language: `words("answer", probability="93%")`."""

    def __init__(self, language: str = DEFAULT) -> None:
        self.language = language

    def __call__(self, key: str, **values: object) -> str:
        return TEXTS[self.language][key].format(**values)

    def name(self, species: str) -> str:
        """The name of a class, with its Chinese one before it where that is known."""
        short = self.short_name(species)
        return species if short == species else f"{short} {species}"

    def short_name(self, species: str) -> str:
        """The name of a class in Chinese, where that is known and spoken."""
        return SPECIES.get(species, species) if self.language == "zh" else species


def choose_language(accepted: str | None) -> str:
    """The language that a browser's header `Accept-Language` prefers among those of the page."""
    preferred = []
    for entry in (accepted or "").lower().split(","):
        if match := re.fullmatch(r"\s*([a-z]+)[\w-]*\s*(?:;\s*q=([\d.]{1,5}))?\s*", entry, re.ASCII):
            weight = re.fullmatch(r"\d(\.\d*)?", match[2] or "1")
            preferred.append((-float(weight[0]) if weight else 0.0, len(preferred), match[1]))
    return next((language for _, _, language in sorted(preferred) if language in TEXTS), DEFAULT)
