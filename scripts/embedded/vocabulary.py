"""The concepts that the embedded checkpoint can draw: an icon for each, its words, and held-out words.

A row is `name | code points | synonyms | held-out words`. Synonyms are in the training data. Held-out words are in no
prompt and no keyword. The evaluation uses them to measure what the word vectors alone generalise to.
"""

from dataclasses import dataclass

_TABLE = """
dog | 1f436 | hound, doggy, pooch, terrier | puppy, canine
cat | 1f431 | kitty, tabby, feline | kitten, pussycat
mouse | 1f42d | | rodent
rabbit | 1f430 | bunny | hare
fox | 1f98a | vixen |
bear | 1f43b | brown bear, bruin | grizzly
panda | 1f43c | giant panda |
koala | 1f428 | koala bear |
tiger | 1f42f | bengal tiger | tigress
lion | 1f981 | king of beasts | lioness
cow | 1f42e | cattle, calf | heifer
pig | 1f437 | hog, piglet | swine
frog | 1f438 | bullfrog | toad
monkey | 1f435 | macaque | chimpanzee
chicken | 1f414 | hen |
rooster | 1f413 | | cockerel
penguin | 1f427 | emperor penguin |
bird | 1f426 | sparrow | songbird
chick | 1f424 | baby chicken |
duck | 1f986 | mallard | duckling
eagle | 1f985 | bald eagle | hawk
owl | 1f989 | barn owl |
bat | 1f987 | fruit bat |
wolf | 1f43a | grey wolf, werewolf |
horse | 1f434 | mare, stallion | pony
unicorn | 1f984 | |
bee | 1f41d | honeybee | bumblebee
butterfly | 1f98b | monarch butterfly | moth
snail | 1f40c | slug |
ladybug | 1f41e | ladybird |
turtle | 1f422 | sea turtle | tortoise
snake | 1f40d | serpent, cobra | python
lizard | 1f98e | gecko | iguana
dinosaur | 1f996 | t-rex, tyrannosaurus |
dragon | 1f432 | wyvern |
octopus | 1f419 | kraken |
lobster | 1f99e | crayfish |
crab | 1f980 | king crab |
fish | 1f420 | tropical fish, goldfish | trout
dolphin | 1f42c | | porpoise
whale | 1f433 | blue whale |
shark | 1f988 | great white shark |
crocodile | 1f40a | | alligator
zebra | 1f993 | |
gorilla | 1f98d | ape |
elephant | 1f418 | | mammoth
camel | 1f42a | dromedary |
giraffe | 1f992 | |
kangaroo | 1f998 | | wallaby
goat | 1f410 | billy goat |
sheep | 1f411 | ewe, lamb | ram
deer | 1f98c | stag, reindeer | elk
parrot | 1f99c | macaw | cockatoo
flamingo | 1f9a9 | |
raccoon | 1f99d | |
hedgehog | 1f994 | | porcupine
jellyfish | 1fabc | medusa |
rose | 1f339 | red rose |
tulip | 1f337 | |
sunflower | 1f33b | |
bouquet | 1f490 | flowers, bunch of flowers |
tree | 1f333 | oak, maple | elm
palm tree | 1f334 | coconut palm |
cactus | 1f335 | |
mushroom | 1f344 | fungus | toadstool
clover | 1f340 | four leaf clover | shamrock
apple | 1f34e | red apple |
pear | 1f350 | |
orange | 1f34a | tangerine, mandarin | clementine
lemon | 1f34b | |
banana | 1f34c | | plantain
watermelon | 1f349 | melon |
grapes | 1f347 | grape |
strawberry | 1f353 | |
cherry | 1f352 | cherries |
peach | 1f351 | | nectarine
pineapple | 1f34d | ananas |
tomato | 1f345 | |
avocado | 1f951 | |
corn | 1f33d | maize, ear of corn |
carrot | 1f955 | |
croissant | 1f950 | |
bread | 1f35e | loaf | toast
cheese | 1f9c0 | cheddar | gouda
pancakes | 1f95e | pancake, flapjacks |
burger | 1f354 | hamburger | cheeseburger
french fries | 1f35f | fries, chips |
pizza | 1f355 | slice of pizza |
hot dog | 1f32d | hotdog, frankfurter |
taco | 1f32e | tacos |
popcorn | 1f37f | |
sushi | 1f363 | nigiri |
spaghetti | 1f35d | pasta | linguine
ice cream | 1f368 | gelato | sorbet
donut | 1f369 | doughnut |
cookie | 1f36a | cookies | biscuit
birthday cake | 1f382 | cake | torte
cupcake | 1f9c1 | muffin |
chocolate | 1f36b | chocolate bar |
coffee | 2615 | cup of coffee, tea | espresso
beer | 1f37a | mug of beer | lager
wine | 1f377 | glass of wine, red wine | burgundy
cocktail | 1f378 | martini | margarita
wizard | 1f9d9-200d-2642-fe0f | gandalf, mage, harry potter, dumbledore, merlin, magician | sorcerer, warlock
witch | 1f9d9-200d-2640-fe0f | | sorceress, enchantress
fairy | 1f9da-200d-2640-fe0f | pixie, tinkerbell |
vampire | 1f9db-200d-2642-fe0f | dracula |
mermaid | 1f9dc-200d-2640-fe0f | siren |
elf | 1f9dd-200d-2642-fe0f | legolas |
zombie | 1f9df-200d-2642-fe0f | undead |
superhero | 1f9b8-200d-2642-fe0f | superman |
princess | 1f478 | |
king | 1fac5 | monarch, emperor | sovereign
ninja | 1f977 | shinobi |
astronaut | 1f9d1-200d-1f680 | spaceman | cosmonaut
firefighter | 1f9d1-200d-1f692 | | fireman
police officer | 1f46e | cop, policewoman | policeman
santa | 1f385 | santa claus, father christmas |
robot | 1f916 | android, droid | automaton
ghost | 1f47b | spook, phantom | spectre
alien | 1f47d | extraterrestrial, martian |
skull | 1f480 | skeleton |
clown | 1f921 | joker | jester
devil | 1f608 | demon | satan
pumpkin | 1f383 | jack-o-lantern, halloween |
snowman | 26c4 | |
teddy bear | 1f9f8 | teddy |
rocket | 1f680 | space rocket, missile, space shuttle, shuttle | spaceship, spacecraft
ufo | 1f6f8 | flying saucer |
car | 1f697 | sedan | automobile
bus | 1f68c | | coach
fire engine | 1f692 | fire truck |
truck | 1f69a | delivery truck, van | lorry
tractor | 1f69c | |
bicycle | 1f6b2 | bike | cycle
scooter | 1f6f5 | moped, motor scooter | motorbike
train | 1f682 | steam train, steam engine | locomotive
helicopter | 1f681 | chopper |
ship | 1f6a2 | cruise ship, boat | steamer
sailboat | 26f5 | sailing boat | yacht
castle | 1f3f0 | fairytale castle | fortress
house | 1f3e0 | home | cottage
church | 26ea | chapel | cathedral
volcano | 1f30b | |
moon | 1f319 | crescent moon, crescent |
sun | 1f31e | sunshine |
star | 2b50 | golden star |
earth | 1f30d | globe, world |
planet | 1fa90 | saturn | jupiter
rainbow | 1f308 | |
fire | 1f525 | flame | blaze
lightning | 26a1 | thunderbolt |
guitar | 1f3b8 | electric guitar |
violin | 1f3bb | | fiddle
trumpet | 1f3ba | | cornet
drum | 1f941 | drums, snare drum | tambourine
camera | 1f4f7 | photo camera |
television | 1f4fa | tv | telly
laptop | 1f4bb | notebook computer, computer |
phone | 1f4f1 | smartphone, mobile phone |
light bulb | 1f4a1 | lightbulb, bulb | lamp
book | 1f4d5 | novel | paperback
key | 1f511 | golden key |
lock | 1f512 | | padlock
hammer | 1f528 | | mallet
axe | 1fa93 | hatchet | tomahawk
bomb | 1f4a3 | | grenade
crown | 1f451 | royal crown, coronet | diadem
top hat | 1f3a9 | hat |
diamond | 1f48e | gem, gemstone, jewel | sapphire
heart | 2764-fe0f | red heart, love |
trophy | 1f3c6 | prize cup |
balloon | 1f388 | red balloon |
gift | 1f381 | present, gift box |
umbrella | 2614 | | parasol
alarm clock | 23f0 | clock |
backpack | 1f392 | school bag | rucksack, knapsack
glasses | 1f453 | eyeglasses | spectacles
shoe | 1f45f | sneaker, running shoe | trainer
dress | 1f457 | | gown
soccer ball | 26bd | football ball, soccer |
basketball | 1f3c0 | |
anchor | 2693 | |
bell | 1f514 | golden bell | chime
"""


@dataclass(frozen=True)
class Concept:
    """A concept that can be drawn.

    Attributes:
        name: its usual name.
        icon: the code points of its icon.
        synonyms: other words for it, in the training data.
        kept_back: held-out words for it, not in the training data.
    """

    name: str
    icon: str
    synonyms: tuple[str, ...]
    kept_back: tuple[str, ...]


def _words(cell: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in cell.split(",") if word.strip())


def _rows() -> list[Concept]:
    rows = [[cell.strip() for cell in line.split("|")] for line in _TABLE.strip().splitlines()]
    return [Concept(name, icon, _words(synonyms), _words(kept)) for name, icon, synonyms, kept in rows]


CONCEPTS = tuple(_rows())
"""All concepts; the index of a concept is its class in every stage."""

COMMON = tuple(
    """
    dog, cat, rabbit, fox, bear, panda, tiger, lion, cow, pig, frog, monkey, chicken, penguin, bird, duck, owl, wolf,
    horse, unicorn, bee, butterfly, turtle, snake, dinosaur, dragon, octopus, crab, fish, dolphin, whale, shark,
    elephant, giraffe, sheep, rose, sunflower, tree, cactus, mushroom, apple, orange, lemon, banana, watermelon, grapes,
    strawberry, pineapple, tomato, carrot, bread, cheese, burger, pizza, hot dog, taco, sushi, ice cream, donut, cookie,
    birthday cake, coffee, beer, wizard, fairy, vampire, mermaid, zombie, princess, ninja, astronaut, robot, ghost,
    alien, pumpkin, snowman, rocket, car, bus, bicycle, train, ship, castle, house, volcano, moon, sun, star, earth,
    rainbow, fire, guitar, drum, camera, book, key, crown, heart, balloon, umbrella
    """.replace("\n", " ").split(",")
)
"""The hundred names of the evaluation."""
COMMON = tuple(name.strip() for name in COMMON)
