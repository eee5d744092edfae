"""The text that the small vocabulary is trained on, and the strings that it is tried on."""

TRAINING_TEXT = """
A photo of a cat sitting on a red chair in the morning light. The painting shows a lake at dawn with two trees,
a house and a yellow sun over purple mountains. A snowy field at night under a white moon; three sailboats on the
lake, orange sky, blue hills. An astronaut riding a horse on the moon, highly detailed, digital art, 4k, 8k.
It's the artist's best work, isn't it? We're sure they've seen what I'm painting; you'll see, he'd say so.
A desert at noon, a pale blue sky, one tall tree, no clouds. A portrait of an old man with a grey beard, oil on
canvas, soft lighting, sharp focus, trending. The quick brown fox jumps over the lazy dog. Sunset over the sea,
waves, a lighthouse on a rock, seagulls, dramatic clouds, cinematic, wide angle, 35mm, f/1.8, bokeh.
Landscape with a river, meadow, flowers, sheep grazing, mountains in the distance, watercolor, pastel colours.
A futuristic city at night, neon signs, rain, reflections on the street, cyberpunk style, (masterpiece:1.2).
Ein Café am See, naïve peinture, el niño, São Paulo, Ångström, Łódź, čeština, Ελλάδα, Привет мир, 日本語の景色.
low quality, blurry, bad anatomy, watermark, text, cropped, worst quality, jpeg artifacts, signature, deformed.
"""

_WORDS = ("a cat and a dog on a lake under the red sun with two trees and a house by the mountains at dawn "
          "in the snow near the sea ")

ASCII = [
    "", " ", "   ", "a", "A", "a cat", "A Cat", "  a   cat  ", "a\tcat\non\r\na mat", "THE QUICK BROWN FOX",
    "the quick brown fox jumps over the lazy dog", "a photo of an astronaut riding a horse on the moon",
    "hello", "hello world", "hello, world!", "hello,world", "Hello...World", "...", "!!!", "?!?!", ".", ",", "!",
    "\"", "\"\"", "#hashtag", "$100", "100%", "a&b", "a & b", "(a)", "(a:1.2)", "((a))", "[a]", "{a}", "a*b", "*",
    "a+b", "a-b", "a - b", "--", "a_b", "_", "__init__", "a/b", "\\", "a\\b", "a:b", "a;b", "a<b", "<a>", "a=b",
    "==", "a>b", "a?b", "user@example.com", "https://example.com/a?b=c&d=e#f", "a^b", "`code`", "a|b", "a~b", "~",
    "masterpiece, best quality, 1girl, solo, (detailed eyes:1.3), <lora:thing:0.8>",
    "oil on canvas; soft light -- by an unknown artist (1890)", "x", "xyz", "zzzzzz", "qqq jjj", "abcabcabc",
]
DIGITS = [
    "0", "1", "12", "123", "1234567890", "4k", "8k", "35mm", "f/1.8", "3.14159", "1,000,000", "2024-01-31",
    "1920x1080", "no1", "1st 2nd 3rd", "a1b2c3", "v1.5", "1 2 3", "007", "x264", "½", "²", "x²", "①②③", "Ⅳ", "٣٤٥",
    "१२३", "๓", "10⁻⁶", "1/2", "-5", "+7", "1e-5",
]
CONTRACTIONS = [
    "it's", "It's", "IT'S", "don't", "DON'T", "we're", "they've", "I'm", "you'll", "he'd", "'s", "'t", "'re", "'ve",
    "'m", "'ll", "'d", "'", "''", "'''", "''s", "it''s", "rock'n'roll", "o'clock", "'tis", "'twas", "dogs'", "d'art",
    "l'été", "it’s", "don’t", "!'s", "a!'s", "a.'t", "'sword", "'tent", "'read", "'delta", "'S", "'Re", "'LL",
    "he said 'it's'", "1's", "é's", "中's", "\"'s\"", "s's's's",
]
ACCENTS = [
    "café", "cafe\u0301", "CAFÉ", "CAFE\u0301", "naïve", "nai\u0308ve", "São Paulo", "Ångström", "A\u030angstro\u0308m",
    "\u212bngstr\u00f6m", "Łódź", "čeština", "Ελλάδα", "ΟΔΥΣΣΕΥΣ", "ΟΔΟΣ ΣΣ Σ", "ς", "Привет мир", "ПРИВЕТ МИР", "ёлка", "йод",
    "и\u0306од", "straße", "STRASSE", "STRAẞE", "ẞ", "İstanbul", "ISPARTA ıI", "I\u0307", "ﬁne", "ﬀ", "ǅ", "Ǆ", "ŉ", "ſ",
    "\u1e9b\u0323", "q\u0323\u0307", "q\u0307\u0323", "a\u0328\u0301", "a\u0301\u0328", "\u1100\u1161\u11a8", "각",
    "\u0344", "\u0958", "\u2126", "Ω", "K", "\u0301", "\u0301a", "a\u0301\u0301", "a \u0301b", "e\u0301e\u0301", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "\U0001D15E", "Việt Nam", "Vie\u0323\u0302t", "Vie\u0302\u0323t", "ÀÈÌÒÙ àèìòù", "ÆØÅ æøå", "Ħħ", "þÞðÐ", "ŒUVRE",
    "Ⓐ", "ⓐ", "Ⅷ", "Ꭰ ꭰ", "Ა ა", "Ⴀ", "𐐀", "Ａｂｃ１２３", "ª º", "ʰ", "ᾼ", "ᾳ", "ᾈ", "Ϗ", "Ꮳ", "Ᲊ", "Ɤ", "ⱯⱭ",
]
SCRIPTS = [
    "日本語の景色", "山と湖", "猫", "一只猫坐在椅子上", "紅い太陽、白い月。", "한국어 풍경", "ﾊﾝｶｸ ｶﾀｶﾅ", "が", "か\u3099", "カ\u3099", "豈", "\uf900",
    "مرحبا بالعالم", "السَّلَامُ", "שלום עולם", "שָׁלוֹם", "हिन्दी", "नमस्ते दुनिया", "ภาษาไทย", "ქართული", "Հայերեն", "ՀԱՅԵՐԵՆ",
    "தமிழ்", "বাংলা", "ཨོཾ་མ་ཎི", "አማርኛ", "ᚠᚢᚦ", "𒀀𒁀", "𠮷野家", "a中b文c", "中文English混合123", "「引用」", "，。！？", "…", "—", "–",
    "“quoted”", "‘single’", "«guillemets»", "€100", "£5", "¥", "©", "®", "™", "°C", "±", "×", "÷", "→", "∑∫√∞", "♥", "★", "☀", "☃",
]
EMOJI = [
    "😀", "😀😀", "a 😀 b", "a😀b", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "❤", "1️⃣", "🧑🏿‍🚀 on the 🌕", "☀️", "🫠", "🪿", "😀!", "!😀", "😀's",
]
SPACES = [
    "a\u00a0b", "a\u2003b", "a\u3000b", "a\u200bb", "a\ufeffb", "\ufeffa", "a\u2028b", "a\u2029b", "a\u0085b", "a\u000bb", "a\u000cb",
    "a\u001cb", "a\u001fb", "a\u180eb", "a\u1680b", "a\u202fb", "a\u205fb", "a\u2060b", " \t\n\r ", "\u3000", "a \u00a0\u3000 b", "\n\n\n",
    "a\n\n\nb", " a", "a ", "\ta\t",
]
CONTROL = [
    "\u0001", "a\u0001b", "a\u0007b", "\u001b[31mred\u001b[0m", "a\u007fb", "a\u0080b", "a\u009fb", "a\u00adb", "\u200e\u200f", "a\u202eb",
    "a\u0000b", "\u0000", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\U000e0001", "a\ufe0fb", "a\u034fb", "\u0378", "a\u0378b", "\u2065",
]
SPECIAL = [
    "<|startoftext|>", "<|endoftext|>", "<|startoftext|>a cat<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b",
    "<|endoftext|><|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>", "a<|EndOfText|>b", "<|startoftext", "startoftext|>",
    "<|startoftext|", "<| endoftext |>", "<|endoftext|>'s", "x<|startoftext|>1", "<|padding|>", "!<|endoftext|>!",
    "<<|endoftext|>>", "<|endoftext|>\u0301", "<|end\u00adoftext|>", "</w>", "a</w>", "cat</w> dog", "Ġcat", "Ġ", "!</w>",
]
LONG = [
    _WORDS * 2, _WORDS * 3, _WORDS * 20, "a " * 74, "a " * 75, "a " * 76, "a " * 77, "a " * 200, "!" * 100, "! " * 75,
    "1" * 75, "1" * 80, "x" * 300, "ab" * 200, "猫" * 40, "😀" * 30, "é " * 80, "." * 1000, ("supercalifragilistic" * 8),
    "<|endoftext|>" * 80, "a " * 74 + "<|endoftext|> b", " " * 500 + "a", "a" + " " * 500 + "b",
]

STRINGS = ASCII + DIGITS + CONTRACTIONS + ACCENTS + SCRIPTS + EMOJI + SPACES + CONTROL + SPECIAL + LONG
