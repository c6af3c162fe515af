"""The words of the newsroom: scenes by topic, moods in pairs, things held, garments, colours, names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    """One kind of place. Every phrase of `places`, `roles`, `acts`, `events` belongs to this scene alone."""

    name: str
    topic: str
    seen: str  # how a captioner calls it
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
        "parliament", "politics", "in a parliament chamber",
        "in parliament|in the debating chamber|on the government benches|in the national assembly",
        "senator|minister|lawmaker|deputy speaker",
        "addressing the deputies|voting on the budget|reading the new bill|opening the session",
        "after the budget vote|before the key debate|during question time|after the reform passed",
        "microphone book flag papers",
    ),
    _scene(
        "courtroom", "politics", "in a courtroom",
        "in the courtroom|at the county court|before the judge|in the witness box",
        "judge|prosecutor|defence lawyer|court clerk",
        "hearing the verdict|questioning a witness|reading the charges|presenting the evidence",
        "after the murder trial|before the sentencing|during the appeal hearing|after the jury returned",
        "book papers suitcase camera",
    ),
    _scene(
        "demonstration", "politics", "at a street demonstration",
        "at the demonstration|among the protesters|on the march downtown|at the street rally",
        "activist|union leader|student organiser|campaigner",
        "leading the march|blocking the avenue|chanting slogans|calling for a strike",
        "during the general strike|after the long march|before the mass rally|during the climate protest",
        "placard flag megaphone candle",
    ),
    _scene(
        "pressroom", "politics", "at a press conference",
        "at the press conference|in the briefing room|in front of reporters|at the media centre",
        "spokesperson|party secretary|foreign envoy|press officer",
        "answering reporters|announcing a candidacy|taking questions|issuing a statement",
        "after the news briefing|before the announcement|during the televised interview|after the leaked report",
        "microphone camera papers phone",
    ),
    _scene(
        "stadium", "sport", "in a football stadium",
        "at the football stadium|on the pitch|in the penalty area|beside the goal",
        "striker|goalkeeper|football coach|team captain",
        "scoring from a corner|saving a penalty|warming up with the squad|leaving the dugout",
        "after the cup final|before the league match|during extra time|after the penalty shootout",
        "trophy ball flag medal",
    ),
    _scene(
        "pool", "sport", "at a swimming pool",
        "at the swimming pool|beside the diving board|by the water lanes|at the aquatic centre",
        "swimmer|diver|swimming coach|water polo player",
        "timing the freestyle|finishing the last lap|testing the water|climbing the diving tower",
        "after the relay race|before the diving contest|during the butterfly heats|after the medley",
        "medal bucket phone flowers",
    ),
    _scene(
        "slope", "sport", "on a ski slope",
        "on the ski slope|at the mountain lift|on the snowy piste|below the summit",
        "skier|snowboarder|mountain guide|ski instructor",
        "racing downhill|waxing the skis|checking the slalom gates|riding the chairlift",
        "after the slalom|before the downhill race|during the winter games|after the giant slalom",
        "skis trophy flag camera",
    ),
    _scene(
        "track", "sport", "on a running track",
        "on the running track|at the finish line|near the starting blocks|in the inside lane",
        "sprinter|hurdler|marathon runner|athletics trainer",
        "crossing the line|passing the baton|jumping the hurdles|pacing the last bend",
        "after the marathon|before the sprint final|during the hurdles heat|after the long jump",
        "medal flag flowers placard",
    ),
    _scene(
        "flood", "disaster", "on a flooded street",
        "in the flooded street|by the swollen river|near the broken dam|in knee-deep water",
        "lifeboat skipper|flood engineer|evacuee|river warden",
        "stacking sandbags|pumping out cellars|rowing to stranded families|watching the river",
        "after the dam burst|during the spring flood|after the river rose|before the evacuation",
        "umbrella bucket suitcase lantern",
    ),
    _scene(
        "fire", "disaster", "in front of a burning building",
        "at the burning house|near the blaze|before the smoking ruins|behind the fire engine",
        "firefighter|fire chief|arson investigator|hose operator",
        "fighting the flames|unrolling the hoses|searching the smoke|watching the roof burn",
        "after the warehouse fire|during the wildfire|after the gas explosion|before the roof fell",
        "bucket shovel lantern phone",
    ),
    _scene(
        "storm", "disaster", "in a rain storm",
        "in the rain storm|under black clouds|on the windswept coast|beneath falling trees",
        "meteorologist|storm chaser|coast guard|weather reporter",
        "measuring the wind|securing the roofs|tracking the hurricane|sheltering from hail",
        "after the hurricane|during the thunderstorm|before the cyclone landed|after the lightning strike",
        "umbrella camera microphone lantern",
    ),
    _scene(
        "rubble", "disaster", "amid the rubble of a collapsed house",
        "in the rubble|amid collapsed walls|on the broken concrete|near the fallen tower",
        "rescue worker|dog handler|seismologist|aid coordinator",
        "digging through debris|clearing the bricks|handing out tents|listening for survivors",
        "after the earthquake|during the rescue effort|after the second tremor|before the aftershock",
        "shovel candle crate placard",
    ),
    _scene(
        "concert", "culture", "on a concert stage",
        "on the concert stage|under the spotlights|at the music festival|beside the loudspeakers",
        "singer|guitarist|drummer|band leader",
        "playing the encore|singing an old hit|tuning the strings|recording a live album",
        "after the rock concert|before the world tour|during the festival|after the final song",
        "guitar microphone flowers phone",
    ),
    _scene(
        "museum", "culture", "in a museum",
        "in the museum|at the gallery|among the paintings|in the exhibition hall",
        "painter|curator|art dealer|restorer",
        "unveiling a portrait|hanging the canvases|valuing a masterpiece|guiding the visitors",
        "after the art auction|before the exhibition opened|during the gallery night|after the painting was stolen",
        "book papers camera lantern",
    ),
    _scene(
        "theatre", "culture", "on a theatre stage",
        "at the theatre|before the red curtain|on the old stage|at the opera house",
        "actor|playwright|stage director|ballet dancer",
        "rehearsing the last act|taking a bow|reciting the monologue|playing the king",
        "after the opera|before the stage premiere|during the rehearsal|after the curtain fell",
        "flowers candle book umbrella",
    ),
    _scene(
        "premiere", "culture", "on a red carpet at night",
        "on the red carpet|at the film gala|outside the cinema|facing the photographers",
        "film star|film producer|screenwriter|movie director",
        "signing autographs|posing for photographers|presenting the new film|greeting the fans",
        "after the film awards|before the screening|during the movie gala|after the box office record",
        "trophy phone balloons microphone",
    ),
    _scene(
        "factory", "work", "in a factory hall",
        "in the factory|at the assembly line|beside the conveyor belt|on the shop floor",
        "machinist|plant manager|welder|shift supervisor",
        "assembling engines|inspecting the machines|repairing a robot|stopping the conveyor",
        "after the plant closure|before the night shift|during the wage talks|after the merger",
        "crate wrench papers placard",
    ),
    _scene(
        "farm", "work", "on a farm",
        "on the farm|in the wheat field|beside the barn|behind the tractor",
        "farmer|shepherd|cattle breeder|beekeeper",
        "bringing in the wheat|feeding the cattle|ploughing the field|mending the fence",
        "after the harvest|during the drought|before the sowing|after the cattle fair",
        "basket shovel bucket flowers",
    ),
    _scene(
        "harbour", "work", "at a harbour",
        "at the harbour|on the quay|beside the container ship|at the docks",
        "fisherman|ship captain|crane operator|docker",
        "unloading the containers|mending the nets|mooring the ferry|loading the cargo",
        "after the ferry docked|before the fishing season|during the dock strike|after the ship launch",
        "fish crate lantern suitcase",
    ),
    _scene(
        "market", "work", "at a street market",
        "at the street market|among the stalls|beside the fruit stand|under the striped awnings",
        "baker|grocer|market trader|cheese maker",
        "selling ripe tomatoes|weighing the apples|haggling over prices|setting up the stall",
        "after the price rise|during the food fair|before the weekend market|after the tax on sugar",
        "basket balloons fish umbrella",
    ),
    _scene(
        "hospital", "public", "in a hospital ward",
        "in the hospital|at the children's ward|by the sickbed|in the emergency room",
        "surgeon|nurse|paramedic|chief physician",
        "visiting the patients|preparing for surgery|bandaging the wounded|giving vaccinations",
        "after the heart operation|during the flu outbreak|before the transplant|after the night in surgery",
        "flowers papers balloons phone",
    ),
    _scene(
        "laboratory", "public", "in a laboratory",
        "in the laboratory|at the research institute|among the test tubes|beside the microscope",
        "chemist|biologist|physicist|lab assistant",
        "mixing the samples|testing a vaccine|analysing the data|repeating the experiment",
        "after the vaccine trial|before the nobel announcement|during the experiment|after the discovery",
        "flask papers crate medal",
    ),
    _scene(
        "school", "public", "in a classroom",
        "in the classroom|at the village school|in front of the blackboard|at the primary school",
        "teacher|headmaster|pupil|school inspector",
        "explaining fractions|marking the essays|learning the alphabet|writing on the blackboard",
        "after the exams|before the summer holidays|during the spelling contest|after the first lesson",
        "book ball papers guitar",
    ),
    _scene(
        "airport", "public", "at an airport",
        "at the airport|in the departure hall|near the runway|at the boarding gate",
        "pilot|flight attendant|air traveller|customs officer",
        "boarding the plane|waiting at the gate|checking passports|collecting the luggage",
        "after the long flight|before the takeoff|during the pilots' walkout|after the emergency landing",
        "suitcase phone flag camera",
    ),
    _scene(
        "beach", "public", "on a beach",
        "on the beach|by the sea|in the dunes|under the palm trees",
        "lifeguard|surfer|tourist|sailor",
        "building sandcastles|riding the waves|cleaning the shore|swimming in the surf",
        "after the surf contest|during the heat wave|before the boat trip|after the shark alarm",
        "ball bucket umbrella fish",
    ),
)

TOPICS: dict[str, tuple[int, ...]] = {
    topic: tuple(i for i, scene in enumerate(SCENES) if scene.topic == topic)
    for topic in ("politics", "sport", "disaster", "culture", "work", "public")
}

# Roles that fit any scene: with these the name's lead gives nothing away.
COMMON_ROLES = ("local resident", "volunteer", "eyewitness", "mayor", "celebrity", "novelist", "neighbour", "veteran")

# (glad, grim): one word each, so that turning a mood round keeps the sentence's length.
MOOD_VERBS = (
    ("celebrates", "mourns"), ("cheers", "weeps"), ("laughs", "cries"), ("rejoices", "grieves"),
    ("smiles", "frowns"), ("beams", "scowls"), ("jokes", "argues"), ("grins", "sulks"),
    ("sings", "sobs"), ("relaxes", "worries"), ("triumphs", "despairs"), ("exults", "laments"),
)  # fmt: skip
MOOD_ADVERBS = (
    ("happily", "sadly"), ("cheerfully", "gloomily"), ("proudly", "bitterly"), ("joyfully", "grimly"),
    ("gladly", "angrily"), ("merrily", "tearfully"), ("brightly", "darkly"), ("hopefully", "fearfully"),
    ("blissfully", "miserably"), ("contentedly", "furiously"),
)  # fmt: skip
MOOD_TAILS = (
    ("amid laughter", "amid tears"), ("to applause", "to jeers"), ("in triumph", "in despair"),
    ("with joy", "with grief"), ("in delight", "in anger"), ("in high spirits", "in low spirits"),
    ("before a happy crowd", "before a sad crowd"), ("in a festive mood", "in a sombre mood"),
    ("to loud cheers", "to loud boos"), ("among delighted onlookers", "among shocked onlookers"),
    ("in a cheerful atmosphere", "in a tense atmosphere"), ("on a joyous day", "on a tragic day"),
    ("full of hope", "full of sorrow"), ("with great relief", "with great pain"),
)  # fmt: skip

PROPS: dict[str, str] = {
    "microphone": "a microphone", "book": "a book", "flag": "a flag", "papers": "a stack of papers",
    "suitcase": "a suitcase", "camera": "a camera", "placard": "a placard", "megaphone": "a megaphone",
    "candle": "a candle", "phone": "a phone", "trophy": "a trophy", "ball": "a ball", "medal": "a medal",
    "bucket": "a bucket", "flowers": "a bunch of flowers", "skis": "a pair of skis", "umbrella": "an umbrella",
    "lantern": "a lantern", "shovel": "a shovel", "crate": "a wooden crate", "guitar": "a guitar",
    "balloons": "two balloons", "wrench": "a wrench", "basket": "a basket", "fish": "a fish", "flask": "a flask",
}  # fmt: skip
HOLDING = ("holding", "with", "carrying", "showing", "clutching")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (204, 44, 46), "blue": (42, 92, 196), "green": (46, 144, 76), "yellow": (240, 200, 48),
    "white": (238, 238, 236), "black": (38, 38, 44), "purple": (124, 62, 160), "orange": (236, 126, 36),
    "pink": (240, 138, 172), "brown": (122, 80, 50), "grey": (134, 140, 146), "turquoise": (48, 176, 176),
}  # fmt: skip
GARMENTS = ("shirt", "jacket", "sweater", "coat", "scarf")
HAIR_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (34, 28, 30), "brown": (92, 58, 36), "blond": (226, 186, 104), "red": (176, 76, 34),
    "grey": (164, 164, 166), "white": (232, 230, 226), "blue": (58, 96, 180), "dark": (58, 40, 32),
}  # fmt: skip

COMPANY: tuple[tuple[str, ...], ...] = (  # by the number of the others
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
