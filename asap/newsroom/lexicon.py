"""The words of the newsroom: scenes by topic, moods in pairs, props, garments, colors, names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    """A setting and its words. Every phrase of `places`, `roles`, `acts` and `events` belongs to this scene alone.

    The phrases of a scene share a word ("football striker", "on the football pitch"), as those of a news story do.
    This lets a model learn from about ten thousand captions that the words of one caption belong together.
    """

    name: str
    topic: str
    seen: str  # the scene in the words of a captioner
    places: tuple[str, ...]
    roles: tuple[str, ...]
    acts: tuple[str, ...]
    events: tuple[str, ...]
    props: tuple[str, ...]


def _scene(name: str, topic: str, seen: str, places: str, roles: str, acts: str, events: str, props: str) -> Scene:
    def parts(line: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in line.split("|"))

    return Scene(name, topic, seen, parts(places), parts(roles), parts(acts), parts(events), tuple(props.split()))


SCENES: tuple[Scene, ...] = (
    _scene(
        "parliament",
        "politics",
        "in a parliament chamber",
        "in parliament|on the parliament benches|in the parliament chamber",
        "member of parliament|parliament speaker|parliament secretary",
        "addressing parliament|opening the parliament session",
        "after the parliament vote|before the parliament debate",
        "microphone book flag papers",
    ),
    _scene(
        "courtroom",
        "politics",
        "in a court room",
        "at the county court|before the court|in the court room",
        "court clerk|court lawyer|high court judge",
        "testifying in court|reading the court files",
        "after the court verdict|before the court hearing",
        "book papers suitcase camera",
    ),
    _scene(
        "demonstration",
        "politics",
        "at a street protest",
        "at the street protest|on the protest march|among the protest signs",
        "protest leader|protest organiser|protest singer",
        "leading the protest songs|calling for a new protest",
        "after the climate protest|during the mass protest",
        "placard flag megaphone candle",
    ),
    _scene(
        "pressroom",
        "politics",
        "at a press conference",
        "at the press conference|in the press room|before the press",
        "press officer|press secretary|press agent",
        "answering the press|reading a press statement",
        "after the press briefing|before the press interview",
        "microphone camera papers phone",
    ),
    _scene(
        "stadium",
        "sport",
        "in a football stadium",
        "at the football stadium|on the football pitch|beside the football goal",
        "football striker|football coach|football captain",
        "leading the football squad|leaving the football bench",
        "after the football final|before the football match",
        "trophy ball flag medal",
    ),
    _scene(
        "pool",
        "sport",
        "at a swimming pool",
        "at the swimming pool|beside the swimming lanes|in the swimming hall",
        "swimming coach|swimming champion|swimming teacher",
        "timing the swimming heats|practising swimming turns",
        "after the swimming relay|before the swimming gala",
        "medal bucket phone flowers",
    ),
    _scene(
        "slope",
        "sport",
        "on a ski slope",
        "on the ski slope|at the ski lift|in the ski resort",
        "ski champion|ski instructor|ski jumper",
        "testing the ski run|checking the ski gates",
        "after the ski race|before the ski season",
        "skis trophy flag camera",
    ),
    _scene(
        "track",
        "sport",
        "on a running track",
        "on the running track|beside the running lanes|near the running clock",
        "running coach|running champion|running judge",
        "setting a running record|pacing the running group",
        "after the running final|before the running relay",
        "medal flag flowers placard",
    ),
    _scene(
        "flood",
        "disaster",
        "on a street under flood water",
        "in the flood water|near the flood barrier|in the flood zone",
        "flood engineer|flood warden|flood victim",
        "stacking flood bags|watching the flood level",
        "after the spring flood|during the flood alert",
        "umbrella bucket suitcase lantern",
    ),
    _scene(
        "fire",
        "disaster",
        "at a house fire",
        "near the house fire|beside the fire engine|at the fire scene",
        "fire chief|fire officer|fire witness",
        "fighting the fire|unrolling the fire hoses",
        "after the warehouse fire|during the forest fire",
        "bucket shovel lantern phone",
    ),
    _scene(
        "storm",
        "disaster",
        "in a rain storm",
        "in the rain storm|under storm clouds|on the storm coast",
        "storm chaser|storm expert|storm reporter",
        "tracking the storm|measuring the storm winds",
        "after the storm warning|during the winter storm",
        "umbrella camera microphone lantern",
    ),
    _scene(
        "rubble",
        "disaster",
        "amid earthquake rubble",
        "in the earthquake rubble|amid earthquake ruins|in the earthquake zone",
        "earthquake expert|earthquake survivor|earthquake rescuer",
        "digging through earthquake debris|clearing earthquake walls",
        "after the earthquake|during the earthquake relief",
        "shovel candle crate placard",
    ),
    _scene(
        "concert",
        "culture",
        "on a concert stage",
        "on the concert stage|under the concert lights|in the concert hall",
        "concert singer|concert guitarist|concert drummer",
        "playing the concert hits|opening the concert",
        "after the rock concert|before the concert tour",
        "guitar microphone flowers phone",
    ),
    _scene(
        "museum",
        "culture",
        "in a museum",
        "in the museum|among the museum paintings|in the museum hall",
        "museum curator|museum guide|museum painter",
        "hanging museum paintings|opening the museum show",
        "after the museum theft|before the museum night",
        "book papers camera lantern",
    ),
    _scene(
        "theatre",
        "culture",
        "on a theatre stage",
        "on the theatre stage|before the theatre curtain|in the old theatre",
        "theatre actor|theatre director|theatre dancer",
        "rehearsing the theatre play|reading a theatre script",
        "after the theatre show|before the theatre season",
        "flowers candle book umbrella",
    ),
    _scene(
        "premiere",
        "culture",
        "at a film gala at night",
        "at the film gala|on the red film carpet|outside the film palace",
        "film star|film director|film producer",
        "signing film posters|presenting the new film",
        "after the film awards|before the film screening",
        "trophy phone balloons microphone",
    ),
    _scene(
        "factory",
        "work",
        "in a factory hall",
        "in the factory|at the factory belt|on the factory floor",
        "factory worker|factory manager|factory welder",
        "repairing factory machines|inspecting the factory",
        "after the factory closure|during the factory strike",
        "crate wrench papers placard",
    ),
    _scene(
        "farm",
        "work",
        "on a farm",
        "on the farm|in the farm fields|beside the farm barn",
        "farm owner|farm worker|farm vet",
        "feeding the farm cattle|mending the farm fence",
        "after the farm harvest|during the farm fair",
        "basket shovel bucket flowers",
    ),
    _scene(
        "harbour",
        "work",
        "at a harbour",
        "at the harbour|on the harbour quay|beside the harbour cranes",
        "harbour pilot|harbour master|harbour worker",
        "loading the harbour ferry|watching the harbour ships",
        "after the harbour strike|during the harbour festival",
        "fish crate lantern suitcase",
    ),
    _scene(
        "market",
        "work",
        "at a street market",
        "at the street market|among the market stalls|beside the market fruit",
        "market trader|market baker|market grocer",
        "setting up the market stall|weighing market apples",
        "after the market opened|during the market fair",
        "basket balloons fish umbrella",
    ),
    _scene(
        "hospital",
        "public",
        "in a hospital ward",
        "in the hospital|by the hospital bed|in the hospital ward",
        "hospital doctor|hospital nurse|hospital surgeon",
        "visiting hospital patients|preparing hospital beds",
        "after the hospital opened|during the hospital strike",
        "flowers papers balloons phone",
    ),
    _scene(
        "laboratory",
        "public",
        "in a laboratory",
        "in the laboratory|among laboratory glasses|at the laboratory bench",
        "laboratory chemist|laboratory assistant|laboratory head",
        "mixing laboratory samples|repeating the laboratory test",
        "after the laboratory discovery|before the laboratory tour",
        "flask papers crate medal",
    ),
    _scene(
        "school",
        "public",
        "in a school room",
        "in the school room|at the school blackboard|in the village school",
        "school teacher|school pupil|school inspector",
        "marking school essays|explaining school sums",
        "after the school exams|before the school holidays",
        "book ball papers guitar",
    ),
    _scene(
        "airport",
        "public",
        "at an airport",
        "at the airport|near the airport runway|at the airport gate",
        "airport pilot|airport steward|airport guard",
        "checking airport luggage|opening the airport hall",
        "after the airport strike|during the airport delays",
        "suitcase phone flag camera",
    ),
    _scene(
        "beach",
        "public",
        "on a beach",
        "on the beach|under the beach palms|near the beach dunes",
        "beach lifeguard|beach surfer|beach seller",
        "cleaning the beach|building beach castles",
        "after the beach party|during the beach season",
        "ball bucket umbrella fish",
    ),
)

TOPICS: dict[str, tuple[int, ...]] = {
    topic: tuple(i for i, scene in enumerate(SCENES) if scene.topic == topic)
    for topic in ("politics", "sport", "disaster", "culture", "work", "public")
}

# Roles that fit any scene: with one of these the lead of a text does not reveal its scene.
COMMON_ROLES = ("local resident", "volunteer", "eyewitness", "mayor", "celebrity", "novelist", "neighbour", "veteran")

# (glad, grim): one word each, so that reversing a mood keeps the length of the sentence. A text expresses its mood
# with one pair of TONES, set into the frames, and sometimes with a verb.
TONES = (
    ("happy", "sad"), ("cheerful", "gloomy"), ("proud", "bitter"), ("joyful", "tearful"), ("hopeful", "fearful"),
    ("merry", "mournful"),
)  # fmt: skip
MOOD_VERBS = (
    ("celebrates", "mourns"), ("cheers", "weeps"), ("laughs", "cries"), ("smiles", "frowns"), ("jokes", "argues"),
    ("rejoices", "despairs"),
)  # fmt: skip
LOOK_FRAMES = ("looks", "feels", "seems", "sounds")
AIR_FRAMES = ("in a {} mood", "on a {} day", "with {} eyes", "in {} spirits")
TAIL_FRAMES = ("before {} crowds", "amid {} songs", "to {} music", "among {} onlookers", "with {} words")

PROPS: dict[str, str] = {
    "microphone": "a microphone", "book": "a book", "flag": "a flag", "papers": "a stack of papers",
    "suitcase": "a suitcase", "camera": "a camera", "placard": "a placard", "megaphone": "a megaphone",
    "candle": "a candle", "phone": "a phone", "trophy": "a trophy", "ball": "a ball", "medal": "a medal",
    "bucket": "a bucket", "flowers": "a bunch of flowers", "skis": "a pair of skis", "umbrella": "an umbrella",
    "lantern": "a lantern", "shovel": "a shovel", "crate": "a wooden crate", "guitar": "a guitar",
    "balloons": "two balloons", "wrench": "a wrench", "basket": "a basket", "fish": "a fish", "flask": "a flask",
}  # fmt: skip
HOLDING = ("holding", "with", "carrying", "showing", "clutching")

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (204, 44, 46), "blue": (42, 92, 196), "green": (46, 144, 76), "yellow": (240, 200, 48),
    "white": (238, 238, 236), "black": (38, 38, 44), "purple": (124, 62, 160), "orange": (236, 126, 36),
    "pink": (240, 138, 172), "brown": (122, 80, 50), "grey": (134, 140, 146), "turquoise": (48, 176, 176),
}  # fmt: skip
GARMENTS = ("shirt", "jacket", "sweater", "coat", "scarf")
HAIR_COLORS: dict[str, tuple[int, int, int]] = {
    "black": (34, 28, 30), "brown": (92, 58, 36), "blond": (226, 186, 104), "red": (176, 76, 34),
    "grey": (164, 164, 166), "white": (232, 230, 226), "blue": (58, 96, 180), "dark": (58, 40, 32),
}  # fmt: skip

COMPANY: tuple[tuple[str, ...], ...] = (  # by the number of other people
    ("alone", "without company", "all alone"),
    ("with a friend", "alongside a colleague", "next to a relative", "with one companion"),
    ("with two friends", "alongside two colleagues", "next to two relatives", "with two companions"),
    ("with three friends", "alongside three colleagues", "next to three relatives", "with three companions"),
)
NUMBERS = ("No", "One", "Two", "Three", "Four")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TITLES = ("Dr", "Professor", "Sir", "Lady", "Captain", "Colonel")

FIRST_NAMES: tuple[str, ...] = (
    "Ada", "Adil", "Aiko", "Aline", "Alma", "Amara", "Amir", "Ana", "Anders", "Anton", "Arjun", "Astrid", "Aylin",
    "Bao", "Beatriz", "Ben", "Bianca", "Bogdan", "Bruno", "Camila", "Carla", "Cem", "Chen", "Chidi", "Clara", "Dalia",
    "Daniel", "Daria", "David", "Diego", "Dina", "Edith", "Elena", "Elias", "Emeka", "Emil", "Emma", "Enzo", "Eric",
    "Esra", "Eva", "Farid", "Fatima", "Felix", "Fiona", "Gabriel", "Georg", "Gita", "Greta", "Hana", "Hanna",
    "Hassan", "Helen", "Hugo", "Ida", "Igor", "Ines", "Ingrid", "Irina", "Isaac", "Ivan", "Jada", "Jakob", "Jana",
    "Javier", "Jonas", "Jorge", "Julia", "Jun", "Kai", "Kamal", "Karin", "Kofi", "Lara", "Laszlo", "Leila", "Lena",
    "Leo", "Lin", "Lucia", "Luis", "Luka", "Maja", "Malik", "Marco", "Maria", "Marta", "Max", "Mei", "Milan", "Mina",
    "Mira", "Nadia", "Naomi", "Nils", "Nina", "Noah", "Nora", "Olga", "Oliver", "Omar", "Oscar", "Pablo", "Paula",
    "Pedro", "Petra", "Pia", "Priya", "Rafael", "Rania", "Ravi", "Rosa", "Ruth", "Samir", "Sanna", "Sara", "Sven",
    "Tariq", "Tessa", "Thomas", "Tomas", "Uma", "Vera", "Viktor", "Wanda", "Wei", "Yara", "Yusuf", "Zara", "Zoe",
)  # fmt: skip
NAME_STARTS: tuple[str, ...] = (
    "Ab", "Al", "An", "Bal", "Bar", "Bel", "Ber", "Bo", "Bran", "Cal", "Car", "Ced", "Cor", "Dal", "Dar", "Del", "Do",
    "Dra", "El", "Em", "Fal", "Far", "Fen", "Fer", "Gal", "Gar", "Gor", "Hal", "Har", "Hel", "Hor", "Ib", "Il", "Jan",
    "Jar", "Kal", "Kar", "Kel", "Kor", "Lam", "Lan", "Lin", "Lor", "Mal", "Mar", "Mel", "Mor", "Nak", "Nar", "Nel",
    "Nov", "Od", "Ol", "Or", "Pal", "Par", "Pet", "Quin", "Ram", "Ren", "Ros", "Sal", "San", "Sel", "Sor", "Tal",
    "Tan", "Tor", "Ul", "Val", "Van", "Ver", "Vol", "Wal", "Wen", "Yam", "Yor", "Zan", "Zel",
)  # fmt: skip
NAME_ENDS: tuple[str, ...] = (
    "acek", "aki", "ald", "ando", "ara", "ardi", "arov", "as", "berg", "bury", "dan", "den", "dez", "dini", "dorf",
    "eira", "ek", "ella", "en", "enko", "era", "escu", "ez", "fort", "gard", "gren", "ham", "hara", "ic", "iev",
    "ilo", "imov", "ini", "insky", "ison", "itz", "kins", "lund", "man", "mann", "mont", "moto", "nova", "oglu",
    "ola", "oni", "ora", "oso", "ova", "owski", "quez", "rath", "rell", "rini", "sen", "shima", "ski", "son", "stad",
    "stein", "strom", "ton", "tova", "uchi", "uya", "vik", "ville", "wala", "wick", "wood", "yan", "zadeh",
)  # fmt: skip
