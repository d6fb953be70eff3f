"""Words that needle keys are made of: an adjective and a noun, as RULER's keys are (its own lists are not copied)."""

from __future__ import annotations

_ADJECTIVES = """
able ample amber ancient arctic artful autumn azure balmy basic bitter blank blunt bold brave breezy brief bright
brisk broad bronze calm candid careful cheerful chilly civil clean clear clever cloudy coastal cosy crisp curious
dapper daring deep dense distant double dusty eager early earnest eastern easy elegant empty equal faint fair fancy
fearless fertile festive final firm flat fluent foggy formal fragile frank fresh frosty gentle giant gifted glad
golden grand grateful green hardy hasty hidden hollow honest humble icy idle jolly keen kind large late lean level
light likely little lively local lofty loose loud loyal lucky lunar mellow merry mild modest narrow neat nimble noble
northern novel odd open orderly pale patient plain polite prompt proud quaint quick quiet rapid rare ready remote rich
rosy rough round royal rural rustic scarlet secret serene sharp shiny short silent silver simple slender slow smooth
snowy sober solar solid southern spare speedy stable steady stout strict sturdy subtle sudden sunny swift tall tame
tender thick thorough tidy timid tiny tough tranquil upper urban useful vague valid vast violet vivid warm wary
western wild willing windy wise witty wooden young zesty
"""
_NOUNS = """
acorn anchor anvil apple apron arch arrow aspen attic axle badge bagel balcony banjo barley barn basin basket beacon
beaver bell bench berry birch biscuit blanket boat bonnet bottle boulder bracket branch bridge broom bucket button
cabin cable cactus camel candle canoe canyon carpet castle cedar cellar chalk chapel cherry chimney cliff cloak clover
cobbler coffee comet compass copper coral corner cottage cradle crane crater creek cricket crown curtain cushion daisy
desert diary dolphin donkey drawer drum eagle easel elbow ember engine envelope falcon feather fence fern fiddle field
finch flask flute forest fossil fountain fox garden garlic gate ginger glacier glove goblet granite grape guitar
hammer harbor hatchet hazel hedge helmet heron hill hinge honey horizon hostel igloo inkwell island ivory jacket
jasmine jersey jigsaw juniper kayak kennel kettle kitchen kite ladder lagoon lantern lark lemon lever library lily
lizard locket lodge lotus magnet mantle maple marble market meadow melon meteor mill mirror mitten monkey moss motor
mustard napkin needle nest nettle notebook oak oasis oat ocean olive onion orchard otter oven oyster paddle palace
panther parcel parrot pasture pebble pencil pepper piano pigeon pillow pine pitcher planet plum pocket pond poplar
porch potato prairie prism puddle pulley pumpkin quail quarry quilt rabbit radish raft rake raven reed ribbon river
robin rocket rope saddle saffron sail salmon sandal satchel saucer sawmill scarf school shelf shovel signal sled
slipper snail sparrow spoon spruce squash stable statue stove stream sugar summit swallow tablet teapot temple thicket
thimble thistle ticket timber toast tower trail tulip tunnel turnip turtle umbrella valley vase velvet village vine
violin wagon walnut walrus water whistle willow window winter wolf workshop yarn yeast zebra
"""

ADJECTIVES: tuple[str, ...] = tuple(_ADJECTIVES.split())
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())
